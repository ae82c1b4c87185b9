"""A manifest is read as it was written, split by patient, and refused with a reason where it cannot be used."""

import json
from pathlib import Path

import pytest

from osteomorph.cohort import Cohort, Fold, PairFiles, make_folds, read_cohort, split, write_cohort
from osteomorph.errors import InputError


def pairs(count, patients=None):
    return [
        PairFiles(id=f"p{n}", patient=f"s{n if patients is None else n % patients}", fixed=Path("f.nii"), moving=Path("m.nii"))
        for n in range(count)
    ]


@pytest.fixture
def folder(tmp_path):
    for name in ("f.nii", "m.nii"):
        (tmp_path / name).touch()
    return tmp_path


def test_49_patients_are_split_as_in_the_thesis():
    folds = split([str(n) for n in range(49)], seed=1)
    assert [(len(f["train"]), len(f["validation"]), len(f["test"])) for f in folds] == [(31, 9, 9)] * 3
    assert len({tuple(f["test"]) for f in folds}) == 1
    held = [name for f in folds for name in f["validation"]]
    assert len(set(held)) == 27
    assert split([str(n) for n in range(49)], seed=1) == folds != split([str(n) for n in range(49)], seed=2)


@pytest.mark.parametrize("count", [5, 6, 8, 12, 200])
def test_any_number_of_patients_is_split_without_overlap(count):
    for fold in split([str(n) for n in range(count)], seed=0):
        parts = [set(fold[part]) for part in ("train", "validation", "test")]
        assert all(parts)
        assert set.union(*parts) == {str(n) for n in range(count)}
        assert sum(map(len, parts)) == count


def test_pairs_of_one_patient_stay_together():
    folds, by_pair = make_folds(pairs(30, patients=10), seed=0)
    assert not by_pair
    for fold in folds:
        patients = [{int(i[1:]) % 10 for i in part} for part in (fold.train, fold.validation, fold.test)]
        assert not patients[0] & patients[1]
        assert not patients[0] & patients[2]
        assert not patients[1] & patients[2]


def test_one_patient_alone_is_split_by_pair_and_says_so():
    folds, by_pair = make_folds(pairs(12, patients=1), seed=0)
    assert by_pair
    assert len(folds) == 3
    assert make_folds(pairs(3), seed=0) == ((), False)


def test_a_manifest_reads_back(folder):
    cohort = Cohort(pairs=tuple(pairs(6)), folds=make_folds(pairs(6), 0)[0], names={22: "L3"}, about={"seed": 3})
    write_cohort(folder, cohort)
    again = read_cohort(folder)
    assert again.pairs == cohort.pairs
    assert again.folds == cohort.folds
    assert again.names == {22: "L3"}
    assert again.path(again.pair("p3").fixed) == folder / "f.nii"
    assert "root" not in json.loads((folder / "cohort.json").read_text())


def broken(folder, change):
    write_cohort(folder, Cohort(pairs=tuple(pairs(3))))
    content = json.loads((folder / "cohort.json").read_text())
    change(content)
    (folder / "cohort.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["pairs"].clear(), "pairs"),
        (lambda c: c["pairs"][0].pop("moving"), "pairs.0.moving"),
        (lambda c: c["pairs"][0].update(id="p1"), "same id"),
        (lambda c: c["pairs"][0].update(colour="red"), "colour"),
        (lambda c: c["pairs"][0].update(fixed="gone.nii"), "gone.nii"),
        (lambda c: c.update(folds=[{"train": ["p0"], "validation": ["p9"], "test": []}]), "p9"),
    ],
)
def test_a_wrong_manifest_is_refused_with_its_reason(folder, change, reason):
    broken(folder, change)
    with pytest.raises(InputError, match=reason) as caught:
        read_cohort(folder)
    assert "\n" not in str(caught.value)


def test_no_manifest_at_all_is_said(folder):
    with pytest.raises(InputError, match="does not exist"):
        read_cohort(folder)
    (folder / "cohort.json").write_text("[1, 2")
    with pytest.raises(InputError, match="no manifest"):
        read_cohort(folder)


def test_a_patient_on_both_sides_is_refused():
    with pytest.raises(ValueError, match="two of its parts"):
        Cohort(pairs=tuple(pairs(4, patients=2)), folds=(Fold(train=("p0",), validation=("p1",), test=("p2",)),))

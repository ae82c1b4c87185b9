"use strict"
// Sorts a table by its headings; what has no figure stays last.
const table = document.getElementById("cases")
const heads = [...table.tHead.rows[0].cells]
for (const head of heads) {
  head.querySelector("button")?.addEventListener("click", () => {
    const column = heads.indexOf(head)
    const down = head.getAttribute("aria-sort") !== "descending"
    for (const other of heads) other.removeAttribute("aria-sort")
    head.setAttribute("aria-sort", down ? "descending" : "ascending")
    const key = (row) => {
      const cell = row.cells[column]
      return column === 0 ? cell.textContent : cell?.dataset.value === undefined ? NaN : Number(cell.dataset.value)
    }
    const order = (a, b) => (column === 0 ? String(a).localeCompare(String(b)) : a - b)
    const rows = [...table.tBodies[0].rows].map((row) => ({ row, key: key(row) }))
    rows.sort((a, b) => Number(Number.isNaN(a.key)) - Number(Number.isNaN(b.key)) || (down ? -1 : 1) * order(a.key, b.key) || 0)
    table.tBodies[0].append(...rows.map(({ row }) => row))
  })
}

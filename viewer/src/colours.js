// Colour maps that do not rely on red against green. Stops: R, G, B from 0 to 255, opacity A, position I.
export const MAPS = {
  displacement: {
    unit: 'mm',
    colours: {
      R: [68, 59, 33, 94, 253], G: [1, 82, 145, 201, 231], B: [84, 139, 140, 98, 37], A: [255, 255, 255, 255, 255], I: [0, 64, 128, 191, 255]
    }
  },
  jacobian: {
    unit: 'volume (1: none)',
    colours: {
      R: [45, 128, 216, 247, 253, 224, 127], G: [0, 115, 218, 247, 184, 130, 59], B: [75, 172, 235, 247, 99, 20, 8],
      A: [255, 255, 255, 255, 255, 255, 255], I: [0, 43, 85, 128, 170, 213, 255]
    }
  },
  cells: {
    unit: '',
    colours: { R: [0, 20, 160], G: [0, 60, 210], B: [0, 120, 255], A: [0, 255, 255], I: [0, 128, 255] }
  }
}
export const CONTOURS = {
  R: [0, 31, 255, 255], G: [0, 191, 59, 214], B: [0, 63, 48, 10], A: [0, 255, 255, 255], I: [0, 1, 2, 3],
  labels: ['', 'fixed', 'moving', 'moved']
}

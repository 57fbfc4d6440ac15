// The IoU family as the library defines it, for one pair of upright boxes [x1, y1, x2, y2].
// A loss takes the geometry of a pair and gives its overlap and the terms it adds: loss = 1 - overlap + terms.
// Tests hold values and gradients to the library's.

const ratio = (part, whole, limit) => (whole === 0 ? limit : part / whole);
const square = (value) => value * value;

function axis(p1, p2, t1, t2) {
  const size = p2 - p1, targetSize = t2 - t1;
  const larger = Math.max(size, targetSize);
  return {
    size,
    targetSize,
    span: Math.max(p2, t2) - Math.min(p1, t1),
    overlap: Math.max(0, Math.min(p2, t2) - Math.max(p1, t1)),
    offset: (p1 - t1 + p2 - t2) / 2,
    first: p1 - t1,
    second: p2 - t2,
    mismatch: ratio(Math.abs(size - targetSize), larger, 0),
  };
}

export function geometry(p, t) {
  const x = axis(p[0], p[2], t[0], t[2]), y = axis(p[1], p[3], t[1], t[3]);
  const intersection = x.overlap * y.overlap;
  const union = x.size * y.size + x.targetSize * y.targetSize - intersection;
  return {
    x,
    y,
    intersection,
    union,
    enclosing: x.span * y.span,
    iou: ratio(intersection, union, 0),
    distance: square(x.offset) + square(y.offset),
    diagonal: square(x.span) + square(y.span),
  };
}

// A point counts as a square.
const angle = (width, height) => (width === 0 && height === 0 ? Math.PI / 4 : Math.atan2(width, height));
const aspect = (g) =>
  (4 / square(Math.PI)) * square(angle(g.x.targetSize, g.y.targetSize) - angle(g.x.size, g.y.size));
const unlikeness = (omega) => Math.pow(1 - Math.exp(-omega), 4);

// What a loss treats as a constant under differentiation, taken where the gradient is asked for.
export function constants(g) {
  const v = aspect(g);
  return { alpha: ratio(v, 1 - g.iou + v, 0), diagonal: g.diagonal };
}

export const LOSSES = {
  iou: (g) => ({ overlap: g.iou, terms: {} }),
  giou: (g) => ({ overlap: g.iou, terms: { "(C − U) / C": 1 - ratio(g.union, g.enclosing, 1) } }),
  diou: (g) => ({ overlap: g.iou, terms: { "ρ² / c²": ratio(g.distance, g.diagonal, 0) } }),
  ciou: (g, detached) => ({
    overlap: g.iou,
    terms: { "ρ² / c²": ratio(g.distance, g.diagonal, 0), "α v": detached.alpha * aspect(g) },
  }),
  eiou: (g) => ({
    overlap: g.iou,
    terms: {
      "ρ² / c²": ratio(g.distance, g.diagonal, 0),
      "width": square(ratio(g.x.size - g.x.targetSize, g.x.span, 0)),
      "height": square(ratio(g.y.size - g.y.targetSize, g.y.span, 0)),
    },
  }),
  siou: (g) => {
    const gamma = 2 - ratio(2 * Math.abs(g.x.offset * g.y.offset), g.distance, 0);
    const far = (a) => 1 - Math.exp(-gamma * square(ratio(a.offset, a.span, 0)));
    return {
      overlap: g.iou,
      terms: {
        "distance": (far(g.x) + far(g.y)) / 2,
        "shape": (unlikeness(g.x.mismatch) + unlikeness(g.y.mismatch)) / 2,
      },
    };
  },
  wiou: (g, detached) => ({
    overlap: g.iou,
    terms: { "(R − 1)(1 − IoU)": (Math.exp(ratio(g.distance, detached.diagonal, 0)) - 1) * (1 - g.iou) },
  }),
  mpdiou: (g, detached, { image_width, image_height }) => {
    const diagonal = square(image_width) + square(image_height);
    return {
      overlap: g.iou,
      terms: {
        "first corner": (square(g.x.first) + square(g.y.first)) / diagonal,
        "second corner": (square(g.x.second) + square(g.y.second)) / diagonal,
      },
    };
  },
  shapeiou: (g, detached, { scale }) => {
    const point = g.x.targetSize === 0 && g.y.targetSize === 0;
    const wide = Math.pow(point ? 1 : g.x.targetSize, scale), high = Math.pow(point ? 1 : g.y.targetSize, scale);
    const a = (2 * high) / (wide + high), b = (2 * wide) / (wide + high);
    return {
      overlap: g.iou,
      terms: {
        "distance": ratio(a * square(g.x.offset) + b * square(g.y.offset), g.diagonal, 0),
        "shape": (unlikeness(a * g.x.mismatch) + unlikeness(b * g.y.mismatch)) / 2,
      },
    };
  },
  nwd: (g, detached, { constant }) => {
    const sizes = square(g.x.size - g.x.targetSize) + square(g.y.size - g.y.targetSize);
    return { overlap: Math.exp(-Math.sqrt(g.distance + sizes / 4) / constant), terms: {} };
  },
};

export const PARAMETERS = { image_width: 12, image_height: 8, scale: 0, constant: 2 };

const total = ({ overlap, terms }) => Object.values(terms).reduce((sum, term) => sum + term, 1 - overlap);

// Loss, overlap, terms, and the gradient at x1, y1, x2, y2 by central differences, which give the mean of both
// gradients where boxes tie, as the library has it. The two steps cancel what a tie leaves of the first order.
export function evaluate(kind, p, t, parameters = PARAMETERS) {
  const loss = LOSSES[kind], g = geometry(p, t), detached = constants(g);
  const step = 1e-6 * Math.max(g.x.span, g.y.span, 1e-9);
  const gradient = p.map((_, i) => {
    const at = (by) => {
      const moved = p.slice();
      moved[i] += by;
      return total(loss(geometry(moved, t), detached, parameters));
    };
    const derivative = (by) => (at(by) - at(-by)) / (2 * by);
    return 2 * derivative(step / 2) - derivative(step);
  });
  const parts = loss(g, detached, parameters);
  return { loss: total(parts), ...parts, gradient };
}

"""Check the figures that several plots share."""

import itertools

from matplotlib.text import Annotation, Text

from tinystory.evaluation.plotting import label_points, new_figure


def test_labels_of_crowded_points_cover_neither_each_other_nor_a_point():
    figure = new_figure((6, 5))
    axes = figure.add_subplot()
    points = [(0.5 + 0.004 * n, 0.5 + 0.003 * (n % 3), str(n)) for n in range(12)] + [(0.0, 0.0, "a"), (1.0, 1.0, "b")]
    for x, y, _ in points:
        axes.plot(x, y, "o", markersize=5)
    label_points(axes, points)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    labels = [child for child in axes.get_children() if isinstance(child, Annotation)]
    boxes = [Text.get_window_extent(label, renderer) for label in labels]
    assert [label.get_text() for label in labels] == [text for _, _, text in points]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    for x, y, _ in points:
        assert not any(box.contains(*axes.transData.transform((x, y))) for box in boxes)

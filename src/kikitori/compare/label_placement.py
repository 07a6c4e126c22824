"""Where the labels of points in a scatter plot stand, so that none covers another."""

import math
from collections.abc import Sequence

# Corners of a point for its label: Plotly's name and the direction.
LABEL_POSITIONS = {"top right": (1, 1), "bottom right": (1, -1), "top left": (-1, 1), "bottom left": (-1, -1)}
# Distance of a label from its point, as a share of the plot's width and height.
LABEL_OFFSET = 0.06


def place_labels(x: Sequence[float], y: Sequence[float], order: Sequence[int]) -> dict[int, str]:
    """For each point's label the corner that is farthest from all other points and labels.

    order: indices of the points, those first whose labels matter most. A point whose label would lie over another one
    gets none.
    """
    spans = [(max(values) - min(values)) or 1.0 for values in (x, y)]
    points = [(a / spans[0], b / spans[1]) for a, b in zip(x, y, strict=True)]
    taken: list[tuple[float, float]] = []
    labels: dict[int, str] = {}
    for i in dict.fromkeys(order):
        a, b = points[i]
        corners = {key: (a + LABEL_OFFSET * dx, b + LABEL_OFFSET * dy) for key, (dx, dy) in LABEL_POSITIONS.items()}
        others = [point for j, point in enumerate(points) if j != i] + taken
        room = {key: min((math.dist(place, other) for other in others), default=1.0) for key, place in corners.items()}
        best = max(room, key=lambda key: room[key])
        if min((math.dist(corners[best], label) for label in taken), default=1.0) > LABEL_OFFSET:
            taken.append(corners[best])
            labels[i] = best
    return labels

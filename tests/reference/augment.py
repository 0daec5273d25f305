"""DiffAugment as Zhao et al. 2020 describe it, one image and one pixel at a time."""

import torch


def augmented(image: torch.Tensor, draws: list[float]) -> torch.Tensor:
    """Change an image, (C, S, S), with what 7 numbers in [0, 1) decide."""
    brightness, saturation, contrast, *places = draws
    side = image.shape[1]
    image = image + (brightness - 0.5)
    grey = image.mean(0, keepdim=True)
    image = (image - grey) * (2 * saturation) + grey
    mean = image.mean()
    image = (image - mean) * (contrast + 0.5) + mean

    furthest = round(side / 8)
    down, right = (int(draw * (2 * furthest + 1)) - furthest for draw in places[:2])
    half = side // 2
    centre_row, centre_column = (int(draw * (side + 1)) for draw in places[2:])
    changed = torch.zeros_like(image)
    for row in range(side):
        for column in range(side):
            from_row, from_column = row - down, column - right
            inside = 0 <= from_row < side and 0 <= from_column < side
            in_rows = centre_row - half // 2 <= row < centre_row + half // 2
            in_columns = centre_column - half // 2 <= column < centre_column + half // 2
            if inside and not (in_rows and in_columns):
                changed[:, row, column] = image[:, from_row, from_column]
    return changed

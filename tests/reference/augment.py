"""DiffAugment as Zhao et al. 2020 describe it, one image and one pixel at a time."""

import torch


def augmented(image: torch.Tensor, draws: list[float]) -> torch.Tensor:
    """Change an image, (C, H, W), with what 7 numbers in [0, 1) decide."""
    brightness, saturation, contrast, *places = draws
    height, width = image.shape[1:]
    image = image + (brightness - 0.5)
    grey = image.mean(0, keepdim=True)
    image = (image - grey) * (2 * saturation) + grey
    mean = image.mean()
    image = (image - mean) * (contrast + 0.5) + mean

    down = int(places[0] * (2 * round(height / 8) + 1)) - round(height / 8)
    right = int(places[1] * (2 * round(width / 8) + 1)) - round(width / 8)
    centre_row, centre_column = int(places[2] * (height + 1)), int(places[3] * (width + 1))
    changed = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            from_row, from_column = row - down, column - right
            inside = 0 <= from_row < height and 0 <= from_column < width
            in_rows = centre_row - height // 4 <= row < centre_row + height // 4
            in_columns = centre_column - width // 4 <= column < centre_column + width // 4
            if inside and not (in_rows and in_columns):
                changed[:, row, column] = image[:, from_row, from_column]
    return changed

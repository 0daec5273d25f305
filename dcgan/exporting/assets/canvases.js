// Pixels on canvases, and canvases in files.

const PADDING = 2; // black pixels between the pictures of a grid, as dcgan-sample has them

function paint(canvas, pixels) {
  const { width, height, channels } = NET;
  Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  for (let j = 0; j < width * height; j++) {
    for (let c = 0; c < 3; c++) image.data[4 * j + c] = pixels[channels * j + (channels === 3 ? c : 0)];
    image.data[4 * j + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Canvases of one size as one, in rows of eight, black around each.
function asGrid(canvases) {
  const across = Math.min(8, canvases.length), down = Math.ceil(canvases.length / across);
  const [stepX, stepY] = [NET.width + PADDING, NET.height + PADDING];
  const all = Object.assign(document.createElement("canvas"), {
    width: across * stepX + PADDING, height: down * stepY + PADDING,
  });
  const context = all.getContext("2d");
  context.fillRect(0, 0, all.width, all.height);
  canvases.forEach((each, place) => {
    context.drawImage(each, PADDING + (place % across) * stepX, PADDING + Math.floor(place / across) * stepY);
  });
  return all;
}

async function savePng(canvas, name, scale) {
  const large = Object.assign(document.createElement("canvas"), {
    width: canvas.width * scale, height: canvas.height * scale,
  });
  const context = large.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, 0, 0, large.width, large.height);
  const blob = await new Promise((resolve) => large.toBlob(resolve, "image/png"));
  if (!blob) throw new Error(`a picture of ${large.width}×${large.height} is too large to save`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${name.slice(0, 120)}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/* A figure's files from the page itself, so that a page that was sent alone still has them. */
(() => {
  "use strict";
  const SCALE = 2.5;  // pixels for each unit of the SVG

  function save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  async function png(svg) {
    const box = svg.viewBox.baseVal, image = new Image();
    const copy = svg.cloneNode(true);
    copy.setAttribute("width", box.width);
    copy.setAttribute("height", box.height);
    const text = new XMLSerializer().serializeToString(copy);
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [box.width * SCALE, box.height * SCALE];
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }

  for (const figure of document.querySelectorAll("figure")) {
    const numbers = figure.querySelector("script.numbers");
    const csv = figure.querySelector("a.csv"), drawn = figure.querySelector("a.png");
    if (csv && numbers) {
      csv.addEventListener("click", (event) => {
        event.preventDefault();
        save(new Blob([JSON.parse(numbers.textContent).csv], { type: "text/csv" }), csv.download);
      });
    }
    drawn?.addEventListener("click", async (event) => {
      event.preventDefault();
      save(await png(figure.querySelector(".static svg")), drawn.download);
    });
  }
})();

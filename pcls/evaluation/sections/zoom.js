// The confusion map: what is under the pointer or the cursor, and a closer look at it. Without it the picture is whole.
for (const figure of document.querySelectorAll(".heat")) {
  const classes = Number(figure.dataset.classes);
  const names = JSON.parse(figure.dataset.names);
  const supports = JSON.parse(figure.dataset.supports);
  const leftOut = Number(figure.dataset.leftOut);
  const rows = JSON.parse(figure.dataset.cells).map((flat) => {
    const counts = new Map();
    for (let i = 0; i < flat.length; i += 2) counts.set(flat[i], flat[i + 1]);
    return counts;
  });
  const map = figure.querySelector(".map");
  const [whole, detail] = map.querySelectorAll("image");
  const cursor = figure.querySelector(".cursor");
  const labels = figure.querySelector(".names");
  const told = figure.querySelector("output");
  // In the units of the outer drawing, and at the closest so many classes on a side.
  const LEFT = 108, TOP = 88, SIDE = 430, CLOSEST = 6, NAMED = 44;
  let view = { x: 0, y: 0, size: classes };
  let at = { row: 0, column: 0 };
  let errors = null, place = -1;

  const within = (value, low, high) => Math.min(Math.max(value, low), high);

  function show() {
    view.size = within(view.size, Math.min(CLOSEST, classes), classes);
    view.x = within(view.x, 0, classes - view.size);
    view.y = within(view.y, 0, classes - view.size);
    map.setAttribute("viewBox", `${view.x} ${view.y} ${view.size} ${view.size}`);
    // The whole has dots that are wide enough to be seen; from half of it on, those of the detail are.
    const close = detail && view.size <= classes / 2;
    whole.setAttribute("visibility", close ? "hidden" : "visible");
    detail?.setAttribute("visibility", close ? "visible" : "hidden");
    cursor.setAttribute("x", at.column);
    cursor.setAttribute("y", at.row);
    cursor.setAttribute("visibility", "visible");
    name();
  }

  function name() {
    labels.replaceChildren();
    if (view.size > NAMED) return;
    const unit = SIDE / view.size;
    for (let i = Math.ceil(view.y - 0.5); i + 0.5 <= view.y + view.size; i++) {
      const y = TOP + (i + 0.5 - view.y) * unit;
      label(names[i], `translate(${LEFT - 6} ${y + 4})`, "end", i === at.row, 14);
    }
    for (let i = Math.ceil(view.x - 0.5); i + 0.5 <= view.x + view.size; i++) {
      const x = LEFT + (i + 0.5 - view.x) * unit;
      label(names[i], `translate(${x + 4} ${TOP - 6}) rotate(-90)`, "start", i === at.column, 11);
    }
  }

  function label(text, transform, anchor, here, most) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", "text");
    element.setAttribute("class", here ? "name here" : "name");
    element.setAttribute("transform", transform);
    element.setAttribute("text-anchor", anchor);
    element.textContent = text.length > most ? `${text.slice(0, most - 1)}…` : text;
    labels.append(element);
  }

  function tell() {
    const count = rows[at.row].get(at.column);
    const n = supports[at.row];
    const share = n && count ? ` of ${n.toLocaleString("en")} (${(100 * count / n).toFixed(1)} %)` : "";
    const known = count ? count.toLocaleString("en") : leftOut ? "few or none" : "0";
    told.textContent = `label ${names[at.row]}, predicted ${names[at.column]}: ${known}${share}`;
  }

  function point(row, column) {
    at = { row: within(row, 0, classes - 1), column: within(column, 0, classes - 1) };
    tell();
  }

  // What stands at (x, y) of the map stays there.
  function zoom(factor, x, y) {
    const size = within(view.size * factor, Math.min(CLOSEST, classes), classes);
    const ratio = size / view.size;
    view = { x: x - (x - view.x) * ratio, y: y - (y - view.y) * ratio, size };
    show();
  }

  function follow() {
    if (at.column < view.x || at.column + 1 > view.x + view.size) view.x = at.column + 0.5 - view.size / 2;
    if (at.row < view.y || at.row + 1 > view.y + view.size) view.y = at.row + 0.5 - view.size / 2;
    show();
  }

  function next() {
    errors ??= rows.flatMap((counts, row) => [...counts].map(([column, count]) => ({ row, column, count })))
      .filter((cell) => cell.row !== cell.column)
      .sort((a, b) => b.count - a.count);
    if (!errors.length) return;
    place = (place + 1) % errors.length;
    point(errors[place].row, errors[place].column);
    const size = Math.min(view.size, 30, classes);
    view = { x: at.column + 0.5 - size / 2, y: at.row + 0.5 - size / 2, size };
    show();
  }

  function placeOf(event) {
    const box = map.getBoundingClientRect();
    // The nested drawing's box may take in the picture beyond its frame; the frame's is the outer rectangle's.
    const frame = figure.querySelector(".frame").getBoundingClientRect();
    const area = frame.width ? frame : box;
    return {
      x: view.x + (event.clientX - area.left) / area.width * view.size,
      y: view.y + (event.clientY - area.top) / area.height * view.size,
    };
  }

  const does = {
    in: () => zoom(0.5, at.column + 0.5, at.row + 0.5),
    out: () => zoom(2, at.column + 0.5, at.row + 0.5),
    all: () => { view = { x: 0, y: 0, size: classes }; show(); },
    next,
  };
  const keys = {
    "+": does.in, "=": does.in, "-": does.out, "0": does.all, n: next,
    ArrowLeft: (far) => move(0, -far), ArrowRight: (far) => move(0, far),
    ArrowUp: (far) => move(-far, 0), ArrowDown: (far) => move(far, 0),
  };

  function move(down, right) {
    point(at.row + down, at.column + right);
    follow();
  }

  map.setAttribute("tabindex", "0");
  map.setAttribute("role", "application");
  map.setAttribute("aria-label", "Confusion map. Arrow keys move, with Shift by ten; plus and minus zoom, 0 shows all, " +
    "n goes to the next most frequent confusion.");
  figure.querySelector("svg.plot").setAttribute("role", "group");
  told.setAttribute("aria-live", "polite");
  told.hidden = false;
  told.textContent = "Point at the map, or move on it by the arrow keys. Plus, minus, a double click and, once it has " +
    "been clicked, the wheel zoom; dragging moves.";
  figure.querySelector(".tools").hidden = false;
  figure.querySelector(".tools").addEventListener("click", (event) => does[event.target.dataset.do]?.());

  map.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act(event.shiftKey ? 10 : 1);
  });
  let dragged = null;
  map.addEventListener("pointerdown", (event) => {
    map.focus();
    dragged = placeOf(event);
    map.setPointerCapture(event.pointerId);
  });
  map.addEventListener("pointerup", () => { dragged = null; });
  map.addEventListener("pointermove", (event) => {
    const here = placeOf(event);
    if (dragged) {
      view.x += dragged.x - here.x;
      view.y += dragged.y - here.y;
      show();
      return;
    }
    point(Math.floor(here.y), Math.floor(here.x));
    show();
  });
  map.addEventListener("dblclick", (event) => {
    const here = placeOf(event);
    zoom(event.shiftKey ? 2 : 0.5, here.x, here.y);
  });
  // Only after a click: a page that is scrolled past the map must go on.
  map.addEventListener("wheel", (event) => {
    if (document.activeElement !== map) return;
    event.preventDefault();
    const here = placeOf(event);
    zoom(event.deltaY > 0 ? 1.25 : 0.8, here.x, here.y);
  }, { passive: false });
}

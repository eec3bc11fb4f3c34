// The page of the server: an image in, its classes out. Nothing is kept, and nothing comes from elsewhere.
"use strict";

const $ = (id) => document.getElementById(id);
const TYPES = ["image/jpeg", "image/png", "image/webp"];
const METRICS = {
  top1: "top-1 accuracy", top5: "top-5 accuracy", balanced: "mean recall of classes", macro_f1: "macro F1",
  micro_f1: "micro F1", map: "mean average precision", subset_accuracy: "records with every label right",
};
const SMALL = 112;

let token = "", file = null, turn = 0, asked = 0;
// A picture that is replaced is let go.
const shown = new Map();

const percent = (share) => `${(100 * share).toFixed(1)} %`;

async function ask(path, body) {
  const headers = {};
  if (body) headers["Content-Type"] = body.type;
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body });
  if (response.ok) return response;
  if (response.status === 401) askForToken();
  let text = `the server answered ${response.status}`;
  try {
    text = (await response.json()).error;
  } catch {
    // A proxy's own page.
  }
  throw new Error(text);
}

function askForToken() {
  $("access").hidden = false;
  $("token").focus();
}

function fail(error) {
  $("answer").hidden = true;
  // A browser's own words for a server that is gone differ from each other.
  const text = error instanceof TypeError ? "the server cannot be reached" : error.message;
  $("wrong").textContent = `${text[0].toUpperCase()}${text.slice(1)}.`;
}

function show(image, blob) {
  URL.revokeObjectURL(shown.get(image));
  shown.set(image, URL.createObjectURL(blob));
  image.onload = () => image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) <= SMALL);
  image.src = shown.get(image);
  image.hidden = false;
}

async function classify(chosen, more) {
  const own = ++turn;
  $("wrong").textContent = "";
  $("answer").classList.add("old");
  try {
    // Before it is sent: what is no picture for the browser is none for the server.
    if (!TYPES.includes(chosen.type)) throw new Error("only JPEG, PNG and WebP images can be read");
    await createImageBitmap(chosen).catch(() => { throw new Error("this file is no image, or it is damaged"); });
    if (own !== turn) return;
    file = chosen;
    show($("picture"), file);
    $("picture").alt = file.name ? `The image ${file.name}` : "The image that was pasted";
    const start = performance.now();
    const answer = await (await ask("v1/predict", file)).json();
    const seconds = performance.now() - start;
    if (own !== turn) return;
    tell(answer, seconds, more);
    await explain(answer.predictions[0].classes[0].label);
  } catch (error) {
    if (own !== turn) return;
    if (chosen !== file) $("picture").hidden = true;
    fail(error);
  } finally {
    if (own === turn) $("answer").classList.remove("old");
  }
}

function tell(answer, milliseconds, more) {
  const [found] = answer.predictions;
  $("label").textContent = found.labels.join(", ") || "No label";
  const times = answer.milliseconds;
  $("time").textContent = `${times.model.toFixed(1)} ms in the model, ${times.total.toFixed(1)} ms in the server, ` +
    `${milliseconds.toFixed(0)} ms in all${more ? `; the first of ${more + 1} files` : ""}`;
  $("classes").replaceChildren(...found.classes.map(({ label, probability }) => {
    const button = element("button", label);
    button.type = "button";
    button.addEventListener("click", () => explain(label).catch(fail));
    const name = element("th", button);
    name.scope = "row";
    const bar = element("span", element("i"));
    bar.className = "bar";
    bar.firstChild.style.setProperty("--share", probability);
    const measured = element("div", element("span", percent(probability)), bar);
    measured.className = "measured";
    return element("tr", name, element("td", measured));
  }));
  $("answer").hidden = false;
}

async function explain(label) {
  // An answer that comes late, after another image or class was chosen, is not shown.
  const own = ++asked, image = turn;
  const response = await ask(`v1/explain?label=${encodeURIComponent(label)}`, file);
  const picture = await response.blob();
  if (own !== asked || image !== turn) return;
  show($("why"), picture);
  $("why").alt = `The image in grey, with what speaks for ${label} in blue`;
  // Grad-CAM tells nothing against a class.
  const against = $("method").textContent.startsWith("Grad-CAM") ? "" : ", what against it in orange";
  $("why-class").textContent = `What speaks for ${label} in blue${against}.`;
  for (const button of $("classes").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", button.textContent === label);
  }
}

function element(name, ...content) {
  const made = document.createElement(name);
  made.append(...content);
  return made;
}

function list(place, pairs) {
  place.replaceChildren(...pairs.map(([name, text]) => element("div", element("dt", name), element("dd", text))));
}

async function describe() {
  const facts = await (await ask("v1/model")).json();
  const { height, width, channels } = facts.input;
  const classes = facts.classes.length;
  $("subtitle").textContent = `${facts.model}, ${classes.toLocaleString("en")} classes` +
    (facts.several_labels ? ", of which an image may have several" : "");
  $("method").textContent = `${facts.explanation}.`;
  const most = 40;
  list($("facts"), [
    ["classes", facts.classes.slice(0, most).join(", ") + (classes > most ? ` and ${classes - most} more` : "")],
    ["input", `${height} x ${width} pixels, ${{ 1: "grey", 3: "RGB" }[channels] ?? `${channels} channels`}`],
    ["precision", facts.precision],
    ["probabilities", facts.calibration ? `calibrated: ${facts.calibration}` : "not calibrated"],
    ...Object.entries(facts.origin),
  ]);
  $("model").hidden = false;
  const measured = Object.entries(METRICS).filter(([key]) => key in facts.metrics);
  list($("measured"), [
    ...measured.map(([key, words]) => [words, percent(facts.metrics[key])]),
    ...("n" in facts.metrics ? [["held-out records", facts.metrics.n.toLocaleString("en")]] : []),
  ]);
}

function take(files) {
  if (files.length) classify(files[0], files.length - 1);
}

$("file").addEventListener("change", (event) => {
  take([...event.target.files]);
  // The same file again is a change, too.
  event.target.value = "";
});
document.addEventListener("paste", (event) => take([...event.clipboardData.files]));
// A file that misses the frame would replace the page.
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take([...event.dataTransfer.files]);
});
$("drop").addEventListener("dragenter", () => $("drop").classList.add("over"));
$("drop").addEventListener("dragleave", (event) => {
  if (!$("drop").contains(event.relatedTarget)) $("drop").classList.remove("over");
});
$("access").addEventListener("submit", async (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("wrong").textContent = "";
  try {
    await describe();
    $("access").hidden = true;
    $("file").focus();
  } catch (error) {
    fail(error);
  }
});
describe().catch((error) => {
  // The form says it.
  if ($("access").hidden) fail(error);
});

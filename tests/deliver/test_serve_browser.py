"""The server's page in a real browser."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

import pcls

pytestmark = pytest.mark.browser

TOKEN = "a-token-of-tests-0123456789"


@pytest.fixture(scope="module")
def server(browser, start_server, finished_run, tmp_path_factory):
    # After `browser`, which skips where there is none.
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    return start_server(finished_run, "--token-file", token, "--max-batch", 1)


@pytest.fixture(scope="module")
def digits(finished_run):
    """PNG files by the label that the model gives them, which for a tiny one is not always right."""
    from sklearn.datasets import load_digits

    def png(pixels):
        file = io.BytesIO()
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(file, "PNG")
        return file.getvalue()

    files = [png(pixels) for pixels in load_digits().images[:20]]
    return {answer.label: file for file, answer in zip(files, pcls.load(finished_run).predict(files), strict=True)}


@pytest.fixture(scope="module")
def first(digits):
    return min(digits)


@pytest.fixture(scope="module")
def second(digits):
    return max(digits)


@pytest.fixture
def complaints():
    """What the browser says in its console."""
    return []


@pytest.fixture
def page(browser, server, complaints):
    """The page after the token was given; at the end the browser must have had nothing to complain of."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(15_000)
    requests = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.get_by_label("This server asks for a token").fill(TOKEN)
    assert not page.locator("#model").is_visible()
    page.keyboard.press("Enter")
    page.get_by_text("cnn28, 10 classes").wait_for()
    # Chromium's own word for the answer 401, from before the token was given.
    assert [one for one in complaints if "401" not in one] == []
    complaints.clear()
    yield page
    assert complaints == []
    assert [url for url in requests if not url.startswith((f"http://127.0.0.1:{server.port}/", "blob:", "data:"))] == []
    context.close()


DROP = """([content, name, type]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type }));
  return data;
}"""


def drop(page, content, name="3.png", kind="image/png"):
    """As if a file had been dragged from a folder and dropped."""
    data = page.evaluate_handle(DROP, [base64.b64encode(content).decode(), name, kind])
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("#drop", event, {"dataTransfer": data})


def answered(page, label):
    page.get_by_role("heading", name=label, exact=True).wait_for()
    page.wait_for_selector(f'#why[alt*="speaks for {label} in blue"]')


def test_a_dropped_image_is_classified_and_explained(page, digits, first, second):
    drop(page, digits[second])
    answered(page, second)
    rows = page.locator("#classes tr")
    assert rows.count() == 5
    shares = [float(text.split()[0]) for text in page.locator("#classes .measured span:first-child").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    assert 20 < shares[0] <= 100
    # The bars are as long as they say: a policy that blocked their style would leave them full.
    widths = page.eval_on_selector_all("#classes i", "all => all.map(i => i.clientWidth / i.parentElement.clientWidth)")
    assert widths == pytest.approx([share / 100 for share in shares], abs=0.03)
    sizes = page.eval_on_selector_all("#picture, #why", "all => all.map(image => image.naturalWidth)")
    # As it was sent, and as the model sees it.
    assert sizes == [8, 10]
    assert "ms in the model" in page.locator("#time").inner_text()


def test_another_image_takes_the_place_of_the_first_and_another_class_is_explained(page, digits, first, second):
    drop(page, digits[first])
    answered(page, first)
    drop(page, digits[second])
    answered(page, second)
    other = page.locator("#classes button").nth(1)
    name = other.inner_text()
    other.click()
    page.wait_for_selector(f'#why[alt*="speaks for {name} in blue"]')
    assert other.get_attribute("aria-pressed") == "true"


def test_a_pasted_image_is_classified(page, digits, second):
    data = page.evaluate_handle(DROP, [base64.b64encode(digits[second]).decode(), "image.png", "image/png"])
    page.evaluate(
        "data => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }))", data
    )
    answered(page, second)


def test_the_page_is_used_by_keyboard_alone(page, digits, second):
    page.locator("#file").focus()
    choosers = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    # Headless Chromium now and then opens none, for a bare control on an empty page as well.
    for _ in range(10):
        page.keyboard.press("Space")
        page.wait_for_timeout(500)
        if choosers:
            break
    choosers[0].set_files({"name": "3.png", "mimeType": "image/png", "buffer": digits[second]})
    answered(page, second)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    name = page.evaluate("document.activeElement.textContent")
    assert name == page.locator("#classes button").nth(1).inner_text()
    page.keyboard.press("Enter")
    page.wait_for_selector(f'#why[alt*="speaks for {name} in blue"]')


@pytest.mark.parametrize(
    ("content", "name", "kind", "words"),
    [
        (b"hello", "notes.txt", "text/plain", "Only JPEG, PNG and WebP images can be read."),
        (b"<html></html>", "page.png", "image/png", "This file is no image, or it is damaged."),
    ],
)
def test_a_bad_file_is_told_and_the_next_good_one_is_answered(page, digits, first, second, content, name, kind, words):
    drop(page, digits[first])
    answered(page, first)
    drop(page, content, name, kind)
    page.get_by_role("alert").get_by_text(words).wait_for()
    assert not page.locator("#answer").is_visible()
    drop(page, digits[second])
    answered(page, second)
    assert page.locator("#wrong").text_content() == ""


def test_what_only_the_server_sees_is_told_in_its_words(page, complaints):
    # More pixels than the server decodes, and fewer than the browser does.
    file = io.BytesIO()
    Image.new("1", (8_000, 5_100)).save(file, "PNG")
    drop(page, file.getvalue())
    page.get_by_role("alert").get_by_text("The image has too many pixels.").wait_for()
    # Chromium's own word for such an answer.
    (complaint,) = complaints
    assert "413" in complaint
    complaints.clear()


def test_a_script_in_the_page_is_not_run(page, complaints):
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p onclick=\"document.title = 1\" id=bad>x</p>')")
    page.locator("#bad").click()
    assert page.title() == "pcls serve"
    assert all("Content Security Policy" in complaint for complaint in complaints)
    assert complaints
    complaints.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_sideways_and_text_can_be_read(page, digits, second, scheme):
    page.emulate_media(color_scheme=scheme)
    drop(page, digits[second])
    answered(page, second)
    for width in (340, 400, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = luminance(page, "body", "backgroundColor")
    assert (background > 0.5) == (scheme == "light")
    for selector in ("#label", "#time", "#classes button", ".measured", "#ways", ".choose label", "#facts dt"):
        text = luminance(page, selector, "color")
        assert (max(background, text) + 0.05) / (min(background, text) + 0.05) >= 4.5, selector


def luminance(page, selector, name):
    """Relative luminance. Source: WCAG 2.2."""
    colour = page.eval_on_selector(selector, f"element => getComputedStyle(element)['{name}']")
    channels = np.array([float(c) for c in colour.strip("rgb()").split(",")]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])

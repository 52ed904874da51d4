"""index.html of a folder of samples: one file that shows the clips in a browser, offline."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from common.files import atomic_path
from common.names import inside
from dataset.masks import clip_length

RESEARCH = "Generated for research. Not a patient, and no basis for diagnosis or treatment."
STARTED = ("Generated for research from given frames or masks, which may be a patient's. No basis for "
           "diagnosis or treatment.")
GALLERY_CLIPS = 64  # clips shown at most, to keep the page small

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>EndoGen: {{ clips | length }} clips</title>
<style>
  body { margin: 0 auto; padding: 2rem 1.5rem; max-width: 76rem; background: #14161a; color: #e4e6ea;
         font: 15px/1.5 system-ui, sans-serif; }
  h1 { margin: 0; font-size: 1.6rem; font-weight: 600; }
  .notice { margin: 1rem 0; padding: .7rem 1rem; border-left: 4px solid #e0a030; background: #2a251b; }
  .clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.2rem;
           margin: 1.5rem 0; }
  figure { margin: 0; background: #1d2026; border-radius: 8px; overflow: hidden; }
  video { display: block; width: 100%; aspect-ratio: 1; background: #000; }
  figcaption { padding: .5rem .8rem .7rem; }
  figcaption span, footer, dt { color: #9aa1ac; }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; margin: 1rem 0; }
  dd { margin: 0; }
</style>
<h1>EndoGen</h1>
<p>{{ clips | length }} generated clips of {{ frames }} frames at {{ "%g" | format(fps) }} per second{%
if hidden %}, {{ hidden }} more in the folder{% endif %}.</p>
{% if notice %}<p class="notice">{{ notice }}</p>{% endif %}
<div class="clips">
{% for clip in clips %}<figure>
  <video autoplay loop muted playsinline src="data:video/mp4;base64,{{ clip.data }}"></video>
  <figcaption>{{ clip.name }}<br><span>seed {{ clip.seed }}</span></figcaption>
</figure>
{% endfor %}</div>
<dl>{% for name, value in settings.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
<footer>{{ research }}</footer>
</html>
"""


def write_gallery(folder: Path, facts: dict[str, Any], clips: Sequence[dict[str, Any]]) -> None:
    """Write index.html beside samples.json, with the clips' videos and the settings."""
    shown = [{"name": clip["class"].replace("_", " "), "seed": clip["seed"],
              "data": base64.b64encode(inside(folder, clip["video"]).read_bytes()).decode()}
             for clip in clips[:GALLERY_CLIPS]]
    weights = {part: f"{facts[part]['name']} ({facts[part]['hash']})" for part in ("checkpoint", "tokenizer")}
    settings, dataset = {**weights, **facts["sampling"]}, facts["dataset"]
    page = Environment(autoescape=True).from_string(PAGE).render(
        clips=shown, hidden=len(clips) - len(shown), frames=clip_length(dataset),
        fps=dataset["fps"], notice=facts.get("notice"), settings=settings,
        research=STARTED if "start" in facts["sampling"] else RESEARCH)
    with atomic_path(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")

"""A rendered endoscopy phantom: made-up tissue, made-up lesions, no clinical data.

A folded, textured, wet tube is seen by a moving wide-angle camera that carries its own light. Eight classes
differ in what is seen and are named for it; every clip follows from its class and its seed. For trying out
and testing the pipeline, never for statements about patients.

    from dataset.phantom import CLASS_NAMES, render_clip
    python -m dataset.phantom --video-path videos          writes input for dataset.prepare
"""

from dataset.phantom.clip import CLASS_NAMES, render_clip

__all__ = ["CLASS_NAMES", "render_clip"]

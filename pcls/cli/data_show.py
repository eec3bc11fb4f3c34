"""`pcls data show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    data: Annotated[str, typer.Argument(help="A recipe, or data as in `pcls data info`.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in augment.policy=trivial")] = None,
    out: Annotated[Path, typer.Option(help="The PNG file.")] = Path("batch.png"),
    images: Annotated[int, typer.Option(help="How many, at most a batch of them.", min=1)] = 32,
    step: Annotated[int, typer.Option(help="The training step, counted from 1.", min=1)] = 1,
    columns: Annotated[int, typer.Option(help="Images in a row.", min=1, max=64)] = 8,
) -> None:
    """Draw a training batch after augmentation, with its labels, into a PNG file.

    Example: pcls data show imagenet_resnet50_fast data.path=photos augment.policy=rand-m9-mstd0.5-inc1
    """
    import numpy as np

    from pcls.cli.data_recipe import check_pictures, data_recipe
    from pcls.data.dataset import open_dataset
    from pcls.data.pipeline import Workers, training_batches
    from pcls.data.show import augmented_images, caption, grid
    from pcls.errors import UserError
    from pcls.training.plan import training_order

    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: is no name of a PNG file; write {out.with_suffix('.png')}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first")
    recipe = data_recipe(data, overrides or [])
    check_pictures(recipe.data, "show")
    dataset = open_dataset(recipe.data)
    order = training_order(recipe, len(dataset.train), labels=dataset.train.labels)
    count = min(order.batch_size, images + images % 2)
    # Pairs that are mixed are whole.
    rows = np.arange(count - count % 2 if recipe.augment.mixes else count)
    if not len(rows):
        raise UserError("train.batch_size is 1, and mixing needs pairs of images; write 2 or more")
    with training_batches(
        dataset.train,
        dataset.preprocessing,
        order=order,
        rows={order.batch_size: rows},
        random_crop=recipe.data.train_crop != "center",
        steps=range(step - 1, step),
        workers=Workers(threads=0),
    ) as batches:
        batch = next(batches)
    pixels, other, share = augmented_images(batch, recipe.augment, dataset.preprocessing, recipe.train.seed)
    names = dataset.class_names

    def name(label: np.ndarray) -> str:
        return ", ".join(names[i] for i in np.flatnonzero(label)) if np.ndim(label) else names[label]

    texts = [
        caption(name(label), name(mixed_in), part) if weight else "not decoded"
        for label, mixed_in, part, weight in zip(batch.label, other, share, batch.weight, strict=True)
    ]
    grid(pixels[:images], texts[:images], columns).save(out)
    typer.echo(f"{out}: {len(pixels[:images])} images of step {step:,}")

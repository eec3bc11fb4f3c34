"""The section of a recipe that names a teacher."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pcls.config.fields import Number, Section, broken_rule


class DistillSection(Section):
    """A trained network whose answers are learned beside the labels.

    The teacher sees the very images of the step, augmented and mixed (Beyer et al. 2022), in the size and with the mean
    that it was trained with. It does not learn.

    Attributes:
      teacher: a run, a bundle's folder, or public weights by name, of the same classes; empty: none.
      share: of the loss that goes by the teacher's answers; the rest goes by the labels.
      temperature: divides the logits of both before they are compared; that part of the loss is multiplied by its
        square. Source: Hinton et al. 2015.
      features: weight of the distance between how similar the images of a batch are to each other in both networks, by
        what enters their heads; works between any two networks. Source: Tung & Mori 2019. 0: none.
      cache: the teacher sees each record once, before the first step, and its answers are looked up; for runs that see
        a record the same in each epoch.
    """

    teacher: str = ""
    share: Annotated[Number, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[Number, Field(gt=0, le=1000)] = 2.0
    features: Annotated[Number, Field(ge=0)] = 0.0
    cache: bool = False

    @model_validator(mode="after")
    def _teaches(self) -> DistillSection:
        for key, info in DistillSection.model_fields.items():
            if not self.teacher and getattr(self, key) != info.default:
                raise broken_rule(f"distill.{key}", "has no effect without distill.teacher")
        if self.teacher and not self.share and not self.features:
            raise broken_rule("distill.share", "is 0 (number), and so is distill.features: the teacher has no effect")
        if self.cache and self.features:
            raise broken_rule("distill.cache", "keeps answers, and distill.features asks the teacher at each step")
        return self

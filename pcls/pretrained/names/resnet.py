"""Names in residual networks; timm and torchvision have the same."""

from pcls.pretrained.names.rules import Names, counted

RESNET = Names(
    (
        (r"^stages/(\d+)/", counted("layer", 1)),
        (r"/shortcut/conv/", r"/downsample/0/"),
        (r"/shortcut/bn/", r"/downsample/1/"),
        (r"^head/", r"fc/"),
    )
)
DEEP_RESNET = Names(
    (
        (r"/shortcut/conv/", r"/downsample/1/"),
        (r"/shortcut/bn/", r"/downsample/2/"),
        (r"^conv1/conv1/", r"conv1/0/"),
        (r"^conv1/bn1/", r"conv1/1/"),
        (r"^conv1/conv2/", r"conv1/3/"),
        (r"^conv1/bn2/", r"conv1/4/"),
        (r"^conv1/conv3/", r"conv1/6/"),
        *RESNET.rules,
    )
)

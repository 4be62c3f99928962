"""How the toy model's official weights, of a made-up PyTorch code, become ours."""

from convert.official import Official
from convert.rules import linear
from convert.table import Table

TABLE = Table(
    key=r"net\.colours\..+",
    rules=(*linear(r"net\.colours", "colours"), *linear(r"net\.out", "depth_head")),
    ignore={},
    official=Official(fields={"width": "width"}, constants={}, twice_width=()),
    sizes="the toy",
)

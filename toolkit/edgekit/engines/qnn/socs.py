"""Qualcomm's chips as the compiler numbers them, and what the NPU (HTP) of each takes.

Numbers, architectures and limits: tried with QAIRT 2.51 (docs/qnn.md). Device side: imports nothing of the build.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Soc:
    """model: ``soc_model`` of the QNN execution provider. arch: of the HTP. float16: whether it computes graphs in float16.

    name: of the silicon, as it stands in a compiled file. sold_as: what devices call it.
    """

    model: int
    name: str
    sold_as: str
    arch: int
    float16: bool = True


SOCS: dict[str, Soc] = {
    soc.name: soc
    for soc in (
        Soc(36, "SM8450", "Snapdragon 8 Gen 1", 69),
        Soc(43, "SM8550", "Snapdragon 8 Gen 2", 73),
        Soc(57, "SM8650", "Snapdragon 8 Gen 3", 75),
        Soc(69, "SM8750", "Snapdragon 8 Elite", 79),
        Soc(87, "SM8850", "Snapdragon 8 Elite Gen 5", 81),
        Soc(60, "SC8380XP", "Snapdragon X Elite", 73),
        Soc(88, "SC8480XP", "Snapdragon X2 Elite", 81),
        Soc(66, "QCS8550", "Dragonwing QCS8550", 73),
        Soc(77, "QCS9100", "Dragonwing QCS9100", 73),
        Soc(93, "QCS6490", "Dragonwing QCS6490", 68, float16=False),
    )
}
MEMORY = 3584_000_000
"""Bytes that one compiled file may use on an HTP: ``memory_alloc_limit=3584`` (MB), which the compiler writes into every one."""

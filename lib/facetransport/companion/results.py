"""Every number and picture that a reader sees is written here, with what it came from.

A notebook opens a ``Run`` and records numbers, figures and tables under ``figures/<profile>/``; README, tables and the
scorecard ``read`` the numbers back, so that prose and results cannot drift apart. What was measured of the machine (its
speed, its memory) has a name under ``speed.`` and stays in ``figures/<profile>/speed/``, which is not committed. The
rest is the same, byte for byte, for the same code on the same machine: provenance stands in the numbers, and a number
that came out as before keeps that of its first time.
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from facetransport import version
from facetransport.companion import artifacts
from facetransport.companion.profiles import Profile, as_config, resolve
from facetransport.files import replacing

VARIABLE = "FACETRANSPORT_FIGURES"
DPI = 150
SPEED = "speed."  # how names of what depends on the machine begin
HEAVIEST = 50_000  # bytes of an SVG that is kept beside its PNG
RICH = 10_000  # colours; charts have fewer, sheets of faces more
FIELDS = (
    "name",
    "value",
    "low",
    "high",
    "n",
    "seeds",
    "unit",
    "notebook",
    "profile",
    "code_version",
    "data_digest",
    "context",
)


def figures_root() -> Path:
    """FACETRANSPORT_FIGURES, else ``figures`` of the checkout above the working directory, else of this package's."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser().absolute()
    here = Path.cwd()
    root = next((p for p in (here, *here.parents) if _is_ours(p)), version.checkout())
    if root is None:
        raise FileNotFoundError(
            f"no checkout of facetransport above {here}; run from one, or set {VARIABLE} to a folder for results"
        )
    return root / "figures"


def _is_ours(folder: Path) -> bool:
    path = folder / "pyproject.toml"
    return (
        path.is_file()
        and tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}).get("name") == "facetransport"
    )


class Run:
    """What one notebook records.

    notebook: its stem, such as ``02_faces_and_recognition``.
    profile: a profile, or its name (FACETRANSPORT_PROFILE, where set, comes before a name).
    data: recipes of the data that is measured on; by default the rendered people. Each record has their digest.
    """

    def __init__(self, notebook: str, profile: Profile | str, data: Sequence[artifacts.Recipe] = ()) -> None:
        if not re.fullmatch(r"\w+", notebook):
            raise ValueError(
                f"notebook: expected the stem of a notebook such as '02_faces_and_recognition', got {notebook!r}"
            )
        self.profile = resolve(profile) if isinstance(profile, str) else profile
        self.notebook = notebook
        self.data_digest = _data_digest(self.profile, data)
        self.names: list[str] = []
        self._known: dict[Path, tuple[str, dict[str, str]]] = {}  # files as they were left here

    @property
    def folder(self) -> Path:
        """figures/<profile>."""
        return figures_root() / self.profile.name

    @property
    def path(self) -> Path:
        """The JSON list of this notebook's records."""
        return self.path_of("")

    def path_of(self, name: str) -> Path:
        """The JSON list that a record of this name stands in."""
        kind = "speed" if name.startswith(SPEED) else "results"
        return self.folder / kind / f"{self.notebook}.json"

    def place(self, name: str, suffix: str) -> Path:
        """Where a figure or a table of this name is written."""
        return (self.folder / "speed" if name.startswith(SPEED) else self.folder) / f"{name}.{suffix}"

    def record(
        self,
        name: str,
        value: float | None,
        *,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
        seeds: Sequence[int] | int | None = None,
        unit: str | None = None,
        **context: Any,
    ) -> dict[str, Any]:
        """Write one number, in place of an earlier one of the same name.

        name: dotted and stable (``reference.orl.accuracy``); accuracies are fractions.
        value: a finite number, or None with ``reason=`` in the context where it could not be measured.
        low, high: the 95 % interval; both or neither. n: how many things it is a mean over. unit: ``images/s``, ``s``.
        context: anything else worth knowing, as plain JSON data.
        """
        _check_name(name)
        if value is None and not context.get("reason"):
            raise ValueError(f"{name}: expected a number, got None; say why with reason='...'")
        numbers = {
            "value": _number(name, value),
            "low": _number(f"{name} low", low),
            "high": _number(f"{name} high", high),
        }
        _check_interval(name, numbers["low"], numbers["high"])
        record = {
            "name": name,
            **numbers,
            "n": _plain(n),
            "seeds": _plain(seeds),
            "unit": unit,
            **self.provenance(),
            "context": _plain(context),
        }
        self._put(self.path_of(name), record)
        self.names.append(name)
        return record

    def _put(self, path: Path, record: dict[str, Any]) -> None:
        lines, name = self._lines(path), record["name"]
        if name in lines and _without_version(json.loads(lines[name])) == _without_version(record):
            return
        lines = lines | {name: _line(path, record)}
        self._known[path] = _write(path, lines), lines

    def _lines(self, path: Path) -> dict[str, str]:
        """The records of a file by name, each as its line; parsed only where somebody else has written it."""
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if self._known.get(path, ("", {}))[0] != text:
            self._known[path] = text, {record["name"]: _line(path, record) for record in _read(path)}
        return self._known.get(path, ("", {}))[1]

    def figure(self, figure: Figure, name: str) -> Figure:
        """Save charts as PNG in 256 colours, and as SVG where they are drawn by lines only, faces as JPEG, and
        close; a cell that ends with this call shows it."""
        _check_name(name)
        title, png = f"{name} ({self.profile.name})", _png(figure)
        kinds = {"jpg": jpeg(png, 92, title)} if is_rich(png) else {"png": lighter(png, title)}
        if "png" in kinds:
            vector = _svg(figure, name, title)
            kinds |= {"svg": vector} if b"<image" not in vector and len(vector) <= HEAVIEST else {}
        for kind, picture in kinds.items():
            with replacing(self.place(name, kind)) as temporary:
                temporary.write_bytes(picture)
        for kind in {"png", "svg", "jpg"} - set(kinds):  # of an earlier run
            self.place(name, kind).unlink(missing_ok=True)
        plt.close(figure)
        return figure

    def table(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Save CSV and Markdown; returns the frame."""
        _check_name(name)
        with replacing(self.place(name, "csv")) as temporary:
            temporary.write_text(frame.to_csv(index=_named_index(frame)), encoding="utf-8")
        with replacing(self.place(name, "md")) as temporary:
            temporary.write_text(f"{markdown(frame)}\n", encoding="utf-8")
        return frame

    def finish(self) -> pd.DataFrame:
        """The last line of a notebook: forget names that this run did not record, return those it did."""
        for path in (self.path_of(SPEED), self.path):
            if path.is_file():
                _write(path, {name: line for name, line in self._lines(path).items() if name in self.names})
        return pd.DataFrame(_read(self.path), columns=FIELDS)[["name", "value", "low", "high", "n", "unit"]]

    def provenance(self) -> dict[str, str]:
        """Notebook, profile, code version and data digest: what everything written here carries."""
        return {
            "notebook": self.notebook,
            "profile": self.profile.name,
            "code_version": version.code_version(),
            "data_digest": self.data_digest,
        }


def is_rich(png: bytes) -> bool:
    """Whether a picture has more than ``RICH`` colours, as sheets of faces have."""
    return _opened(png).getcolors(RICH) is None


def lighter(png: bytes, title: str = "") -> bytes:
    """A chart in 256 colours, dithered: a third of the bytes, the same for the same picture."""
    about, out = PngInfo(), io.BytesIO()
    if title:
        about.add_text("Title", title)
    chart = _opened(png).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
    chart.save(out, "png", optimize=True, pnginfo=about)
    return out.getvalue()


def jpeg(png: bytes, quality: int = 80, title: str = "") -> bytes:
    """A sheet of faces: from 256 colours skin and lips would lose theirs, and a PNG takes three times the bytes."""
    out = io.BytesIO()
    _opened(png).save(out, "jpeg", quality=quality, optimize=True, comment=title)
    return out.getvalue()


def _opened(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png)) as opened:
        return opened.convert("RGB")


def _png(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    return drawn.getvalue()


def _svg(figure: Figure, name: str, title: str) -> bytes:
    """No random ids, no date, no version: the same figure, the same file."""
    drawn = io.BytesIO()
    figure.set_layout_engine("none")  # placed once: laying out takes as long as drawing
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(drawn, format="svg", dpi=DPI, metadata={"Title": title, "Creator": None, "Date": None})
    return drawn.getvalue()


def _without_version(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k != "code_version"}


def machine() -> str:
    """What speeds are of: the processor, its cores and threads in use."""
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpu.read_text(encoding="utf-8")) if cpu.is_file() else []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def read(profile: Profile | str, root: Path | None = None) -> pd.DataFrame:
    """All records of a profile, one row each, columns ``FIELDS``; empty where nothing was recorded yet."""
    name = profile if isinstance(profile, str) else profile.name
    paths = sorted(((root or figures_root()) / name / "results").glob("*.json"))
    return pd.DataFrame([record for path in paths for record in _read(path)], columns=list(FIELDS))


def value(profile: Profile | str, name: str, root: Path | None = None) -> float:
    """One recorded number by its name."""
    records = read(profile, root)
    found = records.loc[records["name"] == name, "value"]
    if found.empty or found.isna().any():
        raise ValueError(f"{name}: no such number in the results of this profile; run `make figures` to record it")
    return float(found.iloc[0])


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table: four significant digits, the index shown when it has a name."""
    shown = frame.reset_index() if _named_index(frame) else frame
    rows = [[_cell(item) for item in row] for row in shown.itertuples(index=False)]
    header = [_cell(column) for column in shown.columns]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _named_index(frame: pd.DataFrame) -> bool:
    return any(name is not None for name in frame.index.names)


def _cell(item: object) -> str:
    text = f"{item:.4g}" if isinstance(item, (float, np.floating)) else str(item)
    return text.replace("|", "\\|").replace("\n", " ")


def _data_digest(profile: Profile, data: Sequence[artifacts.Recipe]) -> str:
    content = [recipe.key for recipe in data] or as_config(profile.rendered)
    return artifacts.digest(content)[:16]


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", name):
        raise ValueError(f"name: expected lower-case words joined by dots or underscores, got {name!r}")


def _check_interval(name: str, low: float | None, high: float | None) -> None:
    if (low is None) != (high is None):
        raise ValueError(f"{name}: expected both low and high or neither, got low={low}, high={high}")
    if low is not None and high is not None and low > high:
        raise ValueError(f"{name}: expected low <= high, got {low} > {high}")


def _number(name: str, number: Any) -> float | int | None:
    number = _plain(number)
    if number is None:
        return None
    if not isinstance(number, (int, float)):
        raise ValueError(f"{name}: expected a number, got {number!r}; words belong into the context")
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number}; record None with reason='...' instead")
    return number


def _plain(data: Any) -> Any:
    """numpy and pandas scalars, arrays and tuples as JSON data."""
    if isinstance(data, (np.generic, np.ndarray)):
        return data.tolist()
    if isinstance(data, Mapping):
        return {str(key): _plain(item) for key, item in data.items()}
    return [_plain(item) for item in data] if isinstance(data, (list, tuple, range)) else data


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); delete it and run `make figures`") from None


def _line(path: Path, record: dict[str, Any]) -> str:
    try:
        return json.dumps(record, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path.stem}: expected finite numbers, text, lists and mappings in a record: {error}"
        ) from None


def _write(path: Path, lines: Mapping[str, str]) -> str:
    """JSON with one record a line, by name; the text."""
    text = "[\n" + ",\n".join(lines[name] for name in sorted(lines)) + "\n]\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text

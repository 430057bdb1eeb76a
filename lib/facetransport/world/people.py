"""Who the rendered people are: draws of identities and of views, and the attributes that follow exactly from them.

Everything is a pure function of (world seed, identity index) or (world seed, identity index, view index), so that any
image can be made anywhere and in any order. Lengths are metres in the template's frame (x to the person's left, z up,
face towards -y).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

Vector = np.ndarray


@dataclass(frozen=True)
class HairStyle:
    """How a haircut is built: scalp displacement, a curtain of long hair, a fringe, a bun."""

    thickness: float  # metres on top of the head
    sides: float = 0.6  # thickness at the sides, as a fraction
    curl: float = 0.0  # 0..1: bumpiness
    length: tuple[float, float] | None = None  # height (z) range at which the curtain ends; None: no curtain
    wave: float = 0.0  # metres: waviness of the curtain
    fullness: float = 0.010  # metres: how far the curtain stands off
    fringe: float = 0.0  # probability of a fringe
    recede: float = 0.0  # metres: how much the hairline goes back
    parting: float = 0.0  # strength of a side parting
    bun: bool = False
    cover: float = 1.0  # opacity of hair on the scalp
    female: float = 0.0  # relative frequencies
    male: float = 0.0


HAIR_STYLES: Mapping[str, HairStyle] = {
    "bald": HairStyle(0.0, cover=0.10, female=0.01, male=0.09),
    "buzz": HairStyle(0.0015, cover=0.75, female=0.02, male=0.14),
    "short": HairStyle(0.007, fringe=0.1, female=0.06, male=0.22),
    "side_part": HairStyle(0.011, sides=0.4, parting=1.0, female=0.03, male=0.16),
    "quiff": HairStyle(0.020, sides=0.2, female=0.02, male=0.12),
    "short_curly": HairStyle(0.014, sides=0.8, curl=0.8, female=0.06, male=0.10),
    "afro": HairStyle(0.034, sides=0.9, curl=0.6, female=0.05, male=0.03),
    "receding": HairStyle(0.005, sides=1.0, recede=0.045, cover=0.9, male=0.12),
    "bob": HairStyle(0.010, length=(0.630, 0.665), fullness=0.016, fringe=0.45, female=0.18, male=0.01),
    "long_straight": HairStyle(0.009, length=(0.52, 0.57), fullness=0.009, fringe=0.25, female=0.22, male=0.02),
    "long_wavy": HairStyle(0.011, length=(0.52, 0.58), wave=0.006, fullness=0.014, fringe=0.15, female=0.16, male=0.02),
    "long_curly": HairStyle(0.014, curl=0.5, length=(0.54, 0.62), wave=0.010, fullness=0.024, female=0.08, male=0.01),
    "bun": HairStyle(0.005, bun=True, female=0.11, male=0.01),
}
HAIR_COLOURS: Mapping[str, tuple[float, float, float]] = {
    "black": (0.045, 0.040, 0.038),
    "dark_brown": (0.110, 0.070, 0.048),
    "brown": (0.230, 0.145, 0.085),
    "light_brown": (0.360, 0.240, 0.140),
    "blond": (0.640, 0.500, 0.300),
    "red": (0.430, 0.180, 0.080),
    "grey": (0.560, 0.550, 0.540),
}
EYE_COLOURS: Mapping[str, tuple[float, float, float]] = {
    "dark_brown": (0.130, 0.070, 0.035),
    "brown": (0.260, 0.150, 0.070),
    "blue": (0.220, 0.330, 0.470),
    "green": (0.230, 0.320, 0.200),
    "grey": (0.340, 0.370, 0.390),
}
_DARK_FIRST = np.array(
    [0.62, 0.26, 0.10, 0.01, 0.005, 0.005]
)  # hair colours of mostly non-European ancestry, grey apart
_MIXED = np.array([0.12, 0.25, 0.27, 0.17, 0.13, 0.06])
# Standard deviation of a local shape parameter, by the first prefix that fits; larger ones give caricatures.
_SHAPE_SCALE = {
    "eye-height": 0.14, "eye-push": 0.14, "eye-scale": 0.30, "eye": 0.26, "ear": 0.30, "mouth-scale-horiz": 0.30,
    "mouth": 0.24, "nose-compression": 0.18, "nose-septumangle": 0.18, "nose-nostrils-angle": 0.18,
    "nose-point-up": 0.25, "nose": 0.36, "neck": 0.25, "head-fat": 0.35, "head-scale": 0.26, "head-back": 0.25,
    "forehead": 0.26, "chin": 0.34, "cheek": 0.34, "eyebrows": 0.34,
}  # fmt: skip


def years_to_shape(years: float) -> float:
    """Age in years on MakeHuman's axis: 1/3 at 12 years, 2/3 at 25, 1 at 90."""
    return float(np.interp(years, (12, 25, 90), (1 / 3, 2 / 3, 1.0)))


@dataclass(frozen=True)
class Identity:
    """What does not change between photographs of one person."""

    index: int
    age: float  # years
    male: bool
    macro: Mapping[str, float]
    local: Mapping[str, float]
    skin: Vector
    melanin: float
    lips: Vector
    lipstick: float
    eyeshadow: Vector
    makeup: float
    hair: Vector
    hair_colour: str
    style: str
    hairline: float
    temple: float
    curtain: Mapping[str, float]
    fringe: float
    strands: float
    brow: Mapping[str, float]
    iris: Vector
    eye_colour: str
    beard: Mapping[str, float]
    blush: float
    bags: float
    freckles: float
    wrinkles: float
    moles: Vector  # (3, 3): x, z, radius; radius 0 where there is none
    glasses: Mapping[str, float] | None
    glasses_colour: Vector
    clothes: Vector
    gloss: float
    phase: Vector

    @property
    def shape_vector(self) -> Vector:
        """The geometry as one vector (macro and local parameters); nearest neighbours in it tell look-alikes."""
        return np.array([*self.macro.values(), *self.local.values()], np.float32)


@dataclass(frozen=True)
class View:
    """What changes between photographs: pose, expression, light, camera, background, glasses on or off."""

    yaw: float  # degrees; positive turns the face to the right of the image
    pitch: float
    roll: float
    actions: Mapping[str, float]
    light: Vector
    key: float
    fill_light: Vector
    fill: float
    ambient: float
    tint: Vector
    exposure: float
    background: Vector  # (2, 3)
    background_angle: float
    background_texture: float
    glasses: bool
    shift: Vector  # crop jitter, fraction of the image
    zoom: float
    distance: float  # camera distance, metres
    blur: float  # pixels at 64 px
    noise: float
    saturation: float
    phase: Vector


def _stream(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(key))


def draw_identity(world_seed: int, index: int, local_names: Sequence[str]) -> Identity:
    """The person with this index; a pure function of its arguments."""
    rng = _stream(world_seed, index)
    male = bool(rng.random() < 0.5)
    age = float(np.clip(18 + 62 * rng.beta(1.2, 1.7), 18, 80))
    ancestry = rng.dirichlet([0.45] * 3)
    macro = dict(
        gender=float(np.clip(rng.normal(0.93 if male else 0.07, 0.10), 0, 1)),
        age=years_to_shape(age),
        weight=float(np.clip(rng.normal(0.5, 0.17), 0.1, 0.95)),
        african=float(ancestry[0]),
        asian=float(ancestry[1]),
        caucasian=float(ancestry[2]),
    )
    local = dict(
        zip(
            local_names,
            (rng.standard_normal(len(local_names)) * _shape_scales(tuple(local_names))).clip(-0.75, 0.75).tolist(),
            strict=True,
        )
    )
    melanin = float(np.clip(ancestry @ (0.82, 0.30, 0.13) + rng.normal(0, 0.09), 0, 1))
    skin = _skin_colour(rng, melanin)
    hair_colour = _hair_colour(rng, ancestry[2], age)
    hair = np.array(HAIR_COLOURS[hair_colour]) * np.exp(rng.normal(0, 0.15) + rng.normal(0, 0.03, 3))
    style = _hair_style(rng, male, age, ancestry[0])
    makeup = float(not male and rng.random() < 0.45) * rng.uniform(0.35, 1.0)
    lipstick = makeup * float(rng.random() < 0.8)
    eye_colour = _eye_colour(rng, ancestry[2])
    haircut = HAIR_STYLES[style]
    length = rng.uniform(*haircut.length) if haircut.length else 0.0
    return Identity(
        index=index,
        age=age,
        male=male,
        macro=macro,
        local=local,
        skin=skin,
        melanin=melanin,
        lips=_lip_colour(rng, skin, male, lipstick),
        lipstick=lipstick,
        eyeshadow=np.array([(0.35, 0.22, 0.30), (0.25, 0.30, 0.42), (0.32, 0.20, 0.14)][rng.integers(3)]),
        makeup=makeup,
        hair=hair,
        hair_colour=hair_colour,
        style=style,
        hairline=float(rng.normal(0, 0.005) + (0.004 if male else 0) + haircut.recede * rng.uniform(0.6, 1.2)),
        temple=float(abs(rng.normal(0, 0.7)) * (1.0 if male else 0.25) + 60 * haircut.recede),
        curtain=dict(
            length=length,
            opening=float(np.deg2rad(rng.uniform(62, 82))),
            wave=haircut.wave * rng.uniform(0.6, 1.4),
            frequency=rng.uniform(3, 8),
            fullness=haircut.fullness * rng.uniform(0.7, 1.5),
        ),
        fringe=float(rng.uniform(0.755, 0.775)) if rng.random() < haircut.fringe else 1.0,
        strands=rng.uniform(0.6, 1.4),
        brow=dict(
            thickness=rng.uniform(0.0022, 0.0046) * (1.15 if male else 0.8),
            arch=rng.uniform(0, 7.0) * (0.6 if male else 1.2),
            angle=rng.normal(0.04, 0.09),
            length=rng.uniform(0.0155, 0.0195),
            height=rng.normal(0.0195, 0.0013),
            offset=rng.normal(0, 0.001),
            density=rng.uniform(0.55, 0.95),
        ),
        iris=np.array(EYE_COLOURS[eye_colour]) * np.exp(rng.normal(0, 0.12)),
        eye_colour=eye_colour,
        beard=_beard(rng, male),
        blush=rng.uniform(0, 0.18) + 0.15 * makeup,
        bags=rng.uniform(0, 0.2) + 0.3 * max(0, (age - 45) / 35) * rng.random(),
        freckles=rng.uniform(0.15, 0.4) if rng.random() < 0.14 * (melanin < 0.35) else 0.0,
        wrinkles=float(np.clip((age - 32) / 45, 0, 1) * rng.uniform(0.6, 1.1)),
        moles=_moles(rng),
        glasses=_glasses(rng),
        glasses_colour=np.array(
            [(0.02, 0.02, 0.02), (0.15, 0.07, 0.03), (0.35, 0.30, 0.22), (0.45, 0.45, 0.47)][rng.integers(4)]
        )
        * rng.uniform(0.6, 1.3),
        clothes=rng.uniform(0.04, 0.75) * (1 + rng.normal(0, 0.18, 3)).clip(0.4, 1.6),
        gloss=rng.uniform(0.04, 0.15),
        phase=rng.uniform(0, 100, 3),
    )


@cache
def _shape_scales(names: tuple[str, ...]) -> Vector:
    return np.array([next(scale for prefix, scale in _SHAPE_SCALE.items() if n.startswith(prefix)) for n in names])


def _skin_colour(rng: np.random.Generator, melanin: float) -> Vector:
    light, dark = np.array([0.90, 0.70, 0.59]), np.array([0.27, 0.16, 0.105])
    base = np.exp(np.log(light) * (1 - melanin) + np.log(dark) * melanin)
    return base * np.exp(rng.normal(0, 0.05)) * (1, 1 + rng.normal(0, 0.015), 1 + rng.normal(0, 0.028))


def _lip_colour(rng: np.random.Generator, skin: Vector, male: bool, lipstick: float) -> Vector:
    natural = skin * ((0.90, 0.70, 0.69) if male else (0.92, 0.64, 0.63)) * np.exp(rng.normal(0, 0.06, 3) * (0.6, 1, 1))
    palette = np.array([(0.58, 0.10, 0.13), (0.45, 0.12, 0.16), (0.70, 0.30, 0.32), (0.48, 0.22, 0.17)])
    paint = palette[rng.integers(4)] * np.exp(rng.normal(0, 0.12, 3))
    return natural * (1 - lipstick) + paint * lipstick


def _hair_colour(rng: np.random.Generator, european: float, age: float) -> str:
    grey = np.clip((age - 42) / 38, 0, 0.85)
    weights = _DARK_FIRST * (1 - european) + _MIXED * european if european > 0.4 else _DARK_FIRST
    weights = np.append(weights / weights.sum() * (1 - grey), grey)
    return str(rng.choice(list(HAIR_COLOURS), p=weights / weights.sum()))


def _eye_colour(rng: np.random.Generator, european: float) -> str:
    light = np.array([0.10, 0.35, 0.30, 0.15, 0.10])
    dark = np.array([0.75, 0.23, 0.01, 0.005, 0.005])
    mixed = light * european + dark * (1 - european) if european > 0.4 else dark
    return str(rng.choice(list(EYE_COLOURS), p=mixed / mixed.sum()))


def _hair_style(rng: np.random.Generator, male: bool, age: float, african: float) -> str:
    weights = np.array([s.male if male else s.female for s in HAIR_STYLES.values()])
    tweak = {"receding": 0.2 + (age > 38) * 1.8, "bald": 0.4 + (age > 42) * 1.6, "afro": 3 * african, "quiff": age < 45}
    weights = weights * [tweak.get(name, 1.0) for name in HAIR_STYLES]
    return str(rng.choice(list(HAIR_STYLES), p=weights / weights.sum()))


def _beard(rng: np.random.Generator, male: bool) -> dict[str, float]:
    """Densities 0..1 of jaw, moustache and chin hair; ``length`` in metres."""
    kind = rng.choice(
        ["none", "stubble", "full", "goatee", "moustache", "long"], p=[0.42, 0.20, 0.14, 0.09, 0.09, 0.06]
    )
    dense, light = rng.uniform(0.65, 0.95), rng.uniform(0.12, 0.38)
    table = {
        "none": (0, 0, 0, 0),
        "stubble": (light, light, light, 0),
        "full": (dense, dense, dense, 0.003),
        "long": (dense, dense, dense, 0.011),
        "goatee": (0, dense, dense, 0.003),
        "moustache": (0, dense, 0, 0.002),
    }
    jaw, moustache, chin, length = table[str(kind)] if male else table["none"]
    return dict(jaw=jaw, moustache=moustache, chin=chin, length=length, top=rng.uniform(0.664, 0.690))


def _moles(rng: np.random.Generator) -> Vector:
    count = min(rng.poisson(0.5), 3)
    moles = np.stack([rng.uniform(-0.05, 0.05, 3), rng.uniform(0.63, 0.72, 3), rng.uniform(0.0013, 0.0024, 3)], 1)
    moles[count:, 2] = 0
    return moles


def _glasses(rng: np.random.Generator) -> dict[str, float] | None:
    drawn = dict(
        width=rng.uniform(0.018, 0.025),
        height=rng.uniform(0.013, 0.021),
        square=rng.uniform(2, 4.5),
        wire=rng.uniform(0.0008, 0.0021),
    )
    return drawn if rng.random() < 0.16 else None


def draw_view(world_seed: int, identity: Identity, view: int) -> View:
    """One photograph of a person; a pure function of (world seed, identity index, view index)."""
    rng = _stream(world_seed, identity.index, view + 1)
    yaw, pitch, roll = rng.normal(0, 17), rng.normal(0, 8), rng.normal(0, 4)
    light = np.array([rng.normal(0, 0.75), -1, 0.45 + rng.normal(0, 0.4)])
    fill = np.array([-np.sign(light[0]) * rng.uniform(0.4, 1.4), -1, rng.normal(0.1, 0.3)])
    warm = rng.normal(0, 0.055)
    grey = rng.uniform(0.08, 0.92)
    top = np.clip(grey + rng.normal(0, 0.07, 3), 0.02, 0.98)
    return View(
        yaw=float(np.clip(yaw, -45, 45)),
        pitch=float(np.clip(pitch, -22, 22)),
        roll=float(np.clip(roll, -12, 12)),
        actions=draw_expression(rng),
        light=light / np.linalg.norm(light),
        key=rng.uniform(0.40, 0.95),
        fill_light=fill / np.linalg.norm(fill),
        fill=rng.uniform(0, 0.35),
        ambient=rng.uniform(0.30, 0.60),
        tint=np.exp(np.array([warm, 0.25 * warm, -warm]) + rng.normal(0, 0.02, 3)),
        exposure=float(np.exp(rng.normal(0, 0.16))),
        background=np.stack([top, np.clip(top * rng.uniform(0.5, 1.4) + rng.normal(0, 0.04, 3), 0.01, 0.99)]),
        background_angle=rng.uniform(0, 2 * np.pi),
        background_texture=rng.uniform(0, 0.35) * (rng.random() < 0.6),
        glasses=bool(rng.random() < 0.85),
        shift=rng.normal(0, 0.010, 2),
        zoom=float(np.exp(rng.normal(0, 0.02))),
        distance=float(np.exp(rng.uniform(np.log(0.6), np.log(2.0)))),
        blur=rng.uniform(0, 0.7) * (rng.random() < 0.35),
        noise=rng.uniform(0, 0.02),
        saturation=float(np.clip(rng.normal(1.0, 0.12), 0.5, 1.3)) * float(rng.random() > 0.03),
        phase=rng.uniform(0, 100, 3),
    )


def draw_expression(rng: np.random.Generator) -> dict[str, float]:
    """Weights of anny's facial actions; mostly mild, the extremes that break the mesh are left out."""

    def sometimes(probability: float, low: float, high: float) -> float:
        value = rng.uniform(low, high)
        return float(value) if rng.random() < probability else 0.0

    smile = sometimes(0.45, 0.1, 0.85)
    frown = sometimes(0.15, 0.1, 0.6) * (smile == 0)
    pucker = sometimes(0.08, 0.1, 0.5) * (smile == 0)
    brow_down, squint = sometimes(0.2, 0.1, 0.6), sometimes(0.25, 0.1, 0.6)
    wide, blink = sometimes(0.15, 0.1, 0.5), sometimes(0.12, 0.1, 0.4)
    blink = 1.0 if rng.random() < 0.03 else blink
    look, tilt, uneven = rng.normal(0, 0.2), rng.normal(0, 0.12), rng.normal(0, 0.05)
    both = {"mouthFrown": frown, "browDown": brow_down, "eyeSquint": squint, "eyeWide": wide, "eyeBlink": blink}
    paired = {f"{name}{side}": value for name, value in both.items() for side in ("Left", "Right")}
    return paired | {
        "mouthSmileLeft": smile,
        "mouthSmileRight": float(np.clip(smile + uneven * (smile > 0), 0, 1)),
        "cheekSquintLeft": 0.5 * smile,
        "cheekSquintRight": 0.5 * smile,
        "jawOpen": sometimes(0.25, 0.05, 0.40) * (1 - 0.5 * pucker),
        "browInnerUp": sometimes(0.2, 0.1, 0.7),
        "mouthPucker": pucker,
        "eyeLookOutLeft": max(look, 0.0),
        "eyeLookInRight": max(look, 0.0),
        "eyeLookInLeft": max(-look, 0.0),
        "eyeLookOutRight": max(-look, 0.0),
        "eyeLookUpLeft": max(tilt, 0.0),
        "eyeLookUpRight": max(tilt, 0.0),
        "eyeLookDownLeft": max(-tilt, 0.0),
        "eyeLookDownRight": max(-tilt, 0.0),
    }


def identity_attributes(person: Identity) -> dict[str, bool]:
    """CelebA-style attributes of the person; exact, by thresholds on what was drawn."""
    haircut, local, beard = HAIR_STYLES[person.style], person.local, person.beard
    return {
        "Male": person.male,
        "Young": person.age < 40,
        "Senior": person.age >= 60,
        "Pale_Skin": person.melanin < 0.18,
        "Dark_Skin": person.melanin > 0.55,
        "Black_Hair": person.hair_colour == "black" and person.style != "bald",
        "Brown_Hair": "brown" in person.hair_colour and person.style != "bald",
        "Blond_Hair": person.hair_colour == "blond" and person.style != "bald",
        "Red_Hair": person.hair_colour == "red" and person.style != "bald",
        "Gray_Hair": person.hair_colour == "grey" and person.style != "bald",
        "Bald": person.style == "bald",
        "Receding_Hairline": person.style == "receding",
        "Straight_Hair": person.style in ("long_straight", "bob", "side_part", "short", "quiff"),
        "Wavy_Hair": person.style == "long_wavy",
        "Curly_Hair": haircut.curl > 0,
        "Long_Hair": haircut.length is not None and haircut.length[1] < 0.63,
        "Short_Hair": haircut.length is None and person.style not in ("bald", "bun"),
        "Bangs": person.fringe < 1,
        "Hair_Bun": haircut.bun,
        "No_Beard": beard["jaw"] == 0 and beard["chin"] == 0,
        "Full_Beard": beard["jaw"] > 0.5,
        "Goatee": beard["chin"] > 0.5 and beard["jaw"] == 0,
        "Mustache": beard["moustache"] > 0.5,
        "5_o_Clock_Shadow": 0 < beard["jaw"] <= 0.5,
        "Heavy_Makeup": person.makeup > 0.5,
        "Wearing_Lipstick": person.lipstick > 0.3,
        "Rosy_Cheeks": person.blush > 0.18,
        "Bags_Under_Eyes": person.bags > 0.2,
        "Freckles": person.freckles > 0,
        "Mole": bool((person.moles[:, 2] > 0).any()),
        "Wrinkles": person.wrinkles > 0.4,
        "Bushy_Eyebrows": person.brow["thickness"] * person.brow["density"] > 0.0032,
        "Arched_Eyebrows": person.brow["arch"] > 4.5,
        "Blue_Eyes": person.eye_colour == "blue",
        "Green_Eyes": person.eye_colour == "green",
        "Brown_Eyes": "brown" in person.eye_colour,
        "Chubby": person.macro["weight"] > 0.65,
        "Slim_Face": person.macro["weight"] < 0.35,
        "Big_Nose": local["nose-scale-depth-incr"] + local["nose-volume-incr"] + local["nose-scale-horiz-incr"] > 0.6,
        "Big_Lips": local["mouth-lowerlip-volume-incr"] + local["mouth-upperlip-volume-incr"] > 0.3,
        "High_Cheekbones": local["cheek-bones-incr"] > 0.3,
        "Prominent_Chin": local["chin-prominent-incr"] > 0.3,
        "Double_Chin": local["neck-double-incr"] > 0.25,
    }


def view_attributes(person: Identity, view: View) -> dict[str, bool]:
    """Attributes of one photograph."""
    return {
        "Eyeglasses": person.glasses is not None and view.glasses,
        "Smiling": view.actions["mouthSmileLeft"] > 0.25,
        "Mouth_Open": view.actions["jawOpen"] > 0.12,
        "Eyes_Closed": view.actions["eyeBlinkLeft"] > 0.9,
        "Frowning": view.actions["mouthFrownLeft"] > 0.25,
    }

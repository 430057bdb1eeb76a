"""Everything that a profile makes once: people, networks, and the results of experiments."""

from __future__ import annotations

from facetransport.companion.artifacts import Recipe
from facetransport.companion.experiments import (
    autoencoder,
    diface_study,
    id3,
    id3pm,
    id3pm_study,
    idiff_face,
    readers,
    recognisers,
    roles,
    superresolution,
)
from facetransport.companion.experiments import synthetic_recognition as synthetic
from facetransport.companion.profiles import ROLES, Profile


def data_recipes(profile: Profile) -> list[Recipe]:
    """The people of a profile, role by role."""
    return [roles.recipe(profile, role) for role in ROLES]


def network_recipes(profile: Profile) -> list[Recipe]:
    """What a profile slices, fits or trains once and can ship, in the order in which they need each other."""
    networks = [recognisers.dlib_recipe(profile), *(recognisers.recipe(profile, name) for name in recognisers.NETWORKS)]
    methods = [
        *idiff_face.recipes(profile),
        *id3pm.recipes(profile),
        *id3.recipes(profile),
        id3pm_study.nearest_recipe(profile),
        *diface_study.recipes(profile),
    ]
    return [
        roles.head_recipe(),
        *networks,
        *autoencoder.recipes(profile),
        *methods,
        readers.recipe(profile),
        superresolution.recipe(profile),
    ]


def experiment_recipes(profile: Profile) -> list[Recipe]:
    """Trainings whose results, not whose weights, are kept: a few KB each."""
    runs = [*synthetic.pilot_runs(profile).values(), *synthetic.recognition_runs(profile).values()]
    runs += [*synthetic.longer_runs(profile).values(), *synthetic.id3_pilot_runs(profile).values()]
    runs += synthetic.mirrored_pilot_runs(profile).values()
    runs += id3.tammes_recipes(profile)
    runs += [*diface_study.study_recipes(profile), *diface_study.level_recipes(profile)]
    return list({recipe.key: recipe for recipe in runs}.values())


def recipes(profile: Profile) -> list[Recipe]:
    """Everything that a profile builds once."""
    return [*data_recipes(profile), *trained_recipes(profile)]


def trained_recipes(profile: Profile) -> list[Recipe]:
    """What `train` makes and ships: networks, then the results of experiments."""
    return [*network_recipes(profile), *experiment_recipes(profile)]

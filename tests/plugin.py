"""A user's plugin: importing it registers a sampler. Never imported when tests are collected."""

from dbpkit.samplers import samplers
from tests.parts import half

samplers.register("tests_half")(half)

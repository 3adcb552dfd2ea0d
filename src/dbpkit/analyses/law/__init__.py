"""The law of compression: what fixed-randomness robustness a compression rate predicts."""

from dbpkit.analyses.law.law import Law, combine

__all__ = ["Law", "combine"]

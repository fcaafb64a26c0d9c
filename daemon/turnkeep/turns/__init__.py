"""The pure part of a turn: from evidence to a decision."""

from turnkeep.turns.classify import Evidence, classify, is_cache

__all__ = ["Evidence", "classify", "is_cache"]

"""Scores of decoder layers: which ones an image-text model needs most."""

from sparsight.lvlm.scores.attention import ImageAttention
from sparsight.lvlm.scores.base import LayerScore
from sparsight.lvlm.scores.change import AngularDistance, BlockInfluence, MultimodalBlockInfluence
from sparsight.lvlm.scores.contribution import LayerContribution
from sparsight.lvlm.scores.loss import GreedyLossIncrease, LossIncrease
from sparsight.lvlm.scores.parameters import ParameterChange
from sparsight.lvlm.scores.run import score_layers
from sparsight.lvlm.scores.table import ScoreTable
from sparsight.lvlm.scores.views.attention import AttentionRank, EffectiveImageTokens, HeadDivergence
from sparsight.lvlm.scores.views.knockout import KnockoutCurve
from sparsight.lvlm.scores.views.redundancy import ImageRedundancy

__all__ = [
    "AngularDistance",
    "AttentionRank",
    "BlockInfluence",
    "EffectiveImageTokens",
    "GreedyLossIncrease",
    "HeadDivergence",
    "ImageAttention",
    "ImageRedundancy",
    "KnockoutCurve",
    "LayerContribution",
    "LayerScore",
    "LossIncrease",
    "MultimodalBlockInfluence",
    "ParameterChange",
    "ScoreTable",
    "score_layers",
]

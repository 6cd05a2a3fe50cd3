"""Scores of decoder layers: which ones an image-text model needs most."""

from sparsight.lvlm.scores.attention import ImageAttention
from sparsight.lvlm.scores.base import LayerPass, LayerScore, SeparateScore, StreamingScore, mean_of
from sparsight.lvlm.scores.change import AngularDistance, BlockInfluence, ChangeScore, MultimodalBlockInfluence
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
    "ChangeScore",
    "EffectiveImageTokens",
    "GreedyLossIncrease",
    "HeadDivergence",
    "ImageAttention",
    "ImageRedundancy",
    "KnockoutCurve",
    "LayerContribution",
    "LayerPass",
    "LayerScore",
    "LossIncrease",
    "MultimodalBlockInfluence",
    "ParameterChange",
    "ScoreTable",
    "SeparateScore",
    "StreamingScore",
    "mean_of",
    "score_layers",
]

"""Scores of decoder layers: which ones an image-text model needs most."""

from sparsight.lvlm.scores.attention import ImageAttention
from sparsight.lvlm.scores.base import LayerScore
from sparsight.lvlm.scores.change import AngularDistance, BlockInfluence, MultimodalBlockInfluence
from sparsight.lvlm.scores.contribution import LayerContribution
from sparsight.lvlm.scores.loss import GreedyLossIncrease, LossIncrease
from sparsight.lvlm.scores.parameters import ParameterChange
from sparsight.lvlm.scores.run import score_layers
from sparsight.lvlm.scores.table import ScoreTable

__all__ = [
    "AngularDistance",
    "BlockInfluence",
    "GreedyLossIncrease",
    "ImageAttention",
    "LayerContribution",
    "LayerScore",
    "LossIncrease",
    "MultimodalBlockInfluence",
    "ParameterChange",
    "ScoreTable",
    "score_layers",
]

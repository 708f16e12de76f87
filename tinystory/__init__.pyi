from tinystory.api.comparison import Comparison as Comparison
from tinystory.api.comparison import compare as compare
from tinystory.api.inside import Inside as Inside
from tinystory.api.model import Model as Model
from tinystory.api.model import Piece as Piece
from tinystory.api.model import load as load
from tinystory.api.replay import Replay as Replay
from tinystory.api.replay import replay as replay
from tinystory.api.story import Story as Story
from tinystory.api.story import StoryToken as StoryToken
from tinystory.api.trace import Trace as Trace
from tinystory.api.trace import WhatIf as WhatIf

__version__: str

"""From log-Mel or a whole recording to text."""

from collections.abc import Sequence

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from kikitori.inference.greedy import greedy
from kikitori.model.whisper import Whisper


def generate_text(whisper: Whisper, encoder_states: Tensor, seconds: Sequence[float]) -> list[str]:
    """The text of each row of (batch, positions, d_model), by the generation config: see `Whisper.limit_generation`.

    seconds: of speech in each row, which bound what is written where the model knows its tokens a second.
    """
    processor, model = whisper.processor, whisper.model
    if model.generation_config.num_beams == 1:
        return processor.decode(greedy(model, encoder_states, processor.prefix, whisper.max_new_tokens_for(seconds)))
    outputs = BaseModelOutput(last_hidden_state=encoder_states)
    return processor.decode(model.generate(encoder_outputs=outputs, language=processor.language, task=processor.task))

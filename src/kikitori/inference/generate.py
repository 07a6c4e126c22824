"""Generates the text of encoder outputs."""

from collections.abc import Sequence

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from kikitori.inference.greedy import greedy
from kikitori.model.whisper import Whisper


def generate_text(whisper: Whisper, encoder_states: Tensor, seconds: Sequence[float]) -> list[str]:
    """Generates the text of each row of (batch, positions, d_model), as `Whisper.configure_generation` set it.

    seconds: durations of the audio, which limit the tokens of each row (`Whisper.max_new_tokens_for`) in greedy
    decoding. With several beams, `generate` of transformers is used.
    """
    processor, model = whisper.processor, whisper.model
    if model.generation_config.num_beams == 1:
        return processor.decode(greedy(model, encoder_states, processor.prefix, whisper.max_new_tokens_for(seconds)))
    outputs = BaseModelOutput(last_hidden_state=encoder_states)
    return processor.decode(model.generate(encoder_outputs=outputs, language=processor.language, task=processor.task))

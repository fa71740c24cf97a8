"""Text from a decoder: greedy, sampled and beam search, prefill and cached steps in one compiled loop.

  generator = Generator(network, eos=2, pad=0, decode=tokenizer.decode)
  generated = generator.from_ids(variables, ids, mask, Decoding(beams=3, max_new_tokens=60))
  generated.texts

decoding.py says what may be asked for, processors.py are the changes of scores as pure functions, chains.py and
beams.py are the two searches, generator.py runs them. Everything acts as `transformers.generate` does, token for token.
"""

from core.generation.decoding import Decoding
from core.generation.generator import Generated, Generator

__all__ = ['Decoding', 'Generated', 'Generator']

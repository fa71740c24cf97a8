"""Films whose frames say their number in black and white blocks, which survive any codec."""

import fractions

import av
import numpy as np

BITS = 12
SHAPE = (48, 64)


def picture(number):
  """uint8 [48, 64, 3]: twelve blocks, three rows of four, bit by bit."""
  bits = [(number >> bit) & 1 for bit in range(BITS)]
  blocks = np.array(bits, np.uint8).reshape(3, 4) * 200 + 20
  return np.repeat(np.repeat(np.repeat(blocks, 16, 0), 16, 1)[..., None], 3, -1)


def number_of(frame):
  """The number that `picture` wrote; of frames at any size."""
  height, width = frame.shape[:2]
  rows = (np.arange(3) * 2 + 1) * height // 6
  columns = (np.arange(4) * 2 + 1) * width // 8
  bits = frame[rows][:, columns].mean(-1).ravel() > 120
  return int((bits << np.arange(BITS)).sum())


def encode(path, count, *, codec='h264', rate=30, options=None, ticks=None, rotation=0, container=None):
  """Encodes pictures 0..count-1; `ticks` are their presentation times in 1/1000 s instead of a constant rate."""
  with av.open(str(path), 'w', options=container or {}) as file:
    stream = file.add_stream(codec, rate=fractions.Fraction(rate), options=options or {})
    stream.height, stream.width = SHAPE
    stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
    stream.codec_context.thread_count = 1
    if ticks is not None:
      stream.codec_context.time_base = fractions.Fraction(1, 1000)
    if rotation:
      stream.set_display_rotation(rotation)
    for i in range(count):
      frame = av.VideoFrame.from_ndarray(picture(i), format='rgb24')
      if ticks is not None:
        frame.pts, frame.time_base = int(ticks[i]), fractions.Fraction(1, 1000)
      file.mux(stream.encode(frame))
    file.mux(stream.encode())
  return path


def decode(path, counted=False):
  """Decoding from the start: times f64 [N] in seconds from the first frame, and numbers [N]."""
  with av.open(str(path)) as file:
    stream = file.streams.video[0]
    frames = [(frame.pts, number_of(frame.to_ndarray(format='rgb24'))) for frame in file.decode(stream)]
    unit, rate = stream.time_base, stream.average_rate
  numbers = [number for _, number in frames]
  if counted:
    return np.array([float(i / rate) for i in range(len(numbers))]), numbers
  first = frames[0][0]
  return np.array([float((pts - first) * unit) for pts, _ in frames]), numbers

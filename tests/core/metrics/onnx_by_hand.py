"""ONNX files without the package `onnx`: a few messages of its protobuf, written by hand."""

import numpy as np

FLOAT, INT64 = 1, 7


def varint(number):
  """An unsigned number, seven bits to a byte."""
  parts = []
  while True:
    number, low = number >> 7, number & 127
    parts.append(low | (128 if number else 0))
    if not number:
      return bytes(parts)


def field(number, value):
  """One field of a message: an int, a text, or the bytes of a message within."""
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  value = value.encode() if isinstance(value, str) else value
  return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name, array):
  """TensorProto of f32 or int64 values."""
  kind = INT64 if array.dtype == np.int64 else FLOAT
  data = array.astype('<i8' if kind == INT64 else '<f4').tobytes()
  return b''.join(field(1, side) for side in array.shape) + field(2, kind) + field(8, name) + field(9, data)


def attribute(name, value):
  """AttributeProto of an int or a list of ints."""
  if isinstance(value, int):
    return field(1, name) + field(3, value) + field(20, 2)
  return field(1, name) + b''.join(field(8, each) for each in value) + field(20, 7)


def node(kind, inputs, output, **attributes):
  """NodeProto with one output."""
  named = [field(1, each) for each in inputs] + [field(2, output), field(3, output), field(4, kind)]
  return b''.join(named + [field(5, attribute(*each)) for each in attributes.items()])


def value(name, shape):
  """ValueInfoProto of f32."""
  sides = b''.join(field(1, field(1, side)) for side in shape)
  return field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, sides)))


def write(path, nodes, inputs, outputs, weights=None):
  """A model of operator set 13: nodes in order, {name: shape} of inputs and outputs, {name: array} of weights."""
  graph = [field(1, each) for each in nodes] + [field(2, 'graph')]
  graph += [field(5, tensor(name, array)) for name, array in (weights or {}).items()]
  graph += [field(11, value(*each)) for each in inputs.items()]
  graph += [field(12, value(*each)) for each in outputs.items()]
  path.write_bytes(field(1, 8) + field(7, b''.join(graph)) + field(8, field(1, '') + field(2, 13)))
  return path


def embedder(path, side=112):
  """Mean colours of the four quadrants of [1, 3, side, side], as [1, 12]: all red first, rows before columns."""
  half = side // 2
  nodes = [
    node('AveragePool', ['input'], 'pooled', kernel_shape=[half, half], strides=[half, half]),
    node('Flatten', ['pooled'], 'output', axis=1),
  ]
  return write(path, nodes, {'input': (1, 3, side, side)}, {'output': (1, 12)})


POINTS = np.array([[0.1, 0.1], [0.9, 0.1], [0.5, 0.5], [0.2, 0.9], [0.8, 0.9]], np.float32)
"""The landmarks of `yunet`, in cells from the corner of the cell."""


def yunet(path, cell=16):
  """YuNet's outputs over cells of 8, 16 and 32 pixels of a picture [1, 3, 640, 640] in BGR.

  A face is where a cell of `cell` pixels is red: box of two cells around its middle, score sqrt((red - blue) / 255).
  """
  nodes, weights, outputs = [], {}, {}
  for stride in (8, 16, 32):
    count, red = (640 // stride) ** 2, np.zeros((1, 3, 1, 1), np.float32)
    if stride == cell:
      red[0, 2], red[0, 0] = 1 / 255, -1 / 255
    box, blank = [0.5, 0.5, np.log(2), np.log(2)], np.zeros
    heads = {'cls': (red, [0]), 'obj': (blank((1, 3, 1, 1)), [1]), 'bbox': (blank((4, 3, 1, 1)), box)}
    heads['kps'] = (blank((10, 3, 1, 1)), POINTS.reshape(-1))
    window = {'kernel_shape': [stride, stride], 'strides': [stride, stride]}
    nodes.append(node('AveragePool', ['input'], f'pooled_{stride}', **window))
    for head, (kernel, bias) in heads.items():
      name = f'{head}_{stride}'
      weights[f'{name}_w'], weights[f'{name}_b'] = np.asarray(kernel, np.float32), np.asarray(bias, np.float32)
      weights[f'{name}_s'] = np.array([1, -1, len(bias)], np.int64)
      inputs = [f'pooled_{stride}', f'{name}_w', f'{name}_b']
      nodes.append(node('Conv', inputs, f'{name}_conv', kernel_shape=[1, 1]))
      nodes.append(node('Transpose', [f'{name}_conv'], f'{name}_last', perm=[0, 2, 3, 1]))
      nodes.append(node('Reshape', [f'{name}_last', f'{name}_s'], name))
      outputs[name] = (1, count, len(bias))
  return write(path, nodes, {'input': (1, 3, 640, 640)}, outputs, weights)

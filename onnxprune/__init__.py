"""onnxprune: a smaller, measurably faster ONNX file that keeps its accuracy, without retraining."""

__version__ = "0.1.0"

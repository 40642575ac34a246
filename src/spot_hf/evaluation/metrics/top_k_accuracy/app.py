"""The page of this metric as a Space."""

import evaluate
from evaluate.utils import launch_gradio_widget


launch_gradio_widget(evaluate.load("top_k_accuracy.py"))

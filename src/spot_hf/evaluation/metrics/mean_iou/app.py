"""The page of this metric as a Space."""

import evaluate
from evaluate.utils import launch_gradio_widget


launch_gradio_widget(evaluate.load("mean_iou.py"))

"""Stands in for `tests/utils/test_configuration_utils.py`, which transformers' source archive lacks: values other than the
defaults, which a configuration must take and keep, for what every configuration has."""

config_common_kwargs = {
    "architectures": ["SpotViTForImageClassification"],
    "chunk_size_feed_forward": 3,
    "dtype": "float16",
    "id2label": {0: "no", 1: "yes"},
    "is_encoder_decoder": True,
    "label2id": {"no": 0, "yes": 1},
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "multi_label_classification",
    "return_dict": False,
}

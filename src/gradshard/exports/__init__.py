"""Exports of a training's metrics to other programs: MLflow and TensorBoard.

``metric_values`` reads them from the records; ``mlflow`` and ``tensorboard`` need the extras of
those names. An export can be repeated, also while the training goes on: it adds what is new.
"""

"""Train a model and watch it learn: `python train.py fit --config configs/quickstart.yaml`."""

from lit_viz.cli import main

if __name__ == "__main__":
    main()

"""Train a model and watch it learn, or look at a finished one: `python train.py fit --config configs/quickstart.yaml`."""

from lit_viz.cli import main

if __name__ == "__main__":
    main()

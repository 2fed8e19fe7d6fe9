"""Labelling files with a trained model: inputs.py reads rows, answers.py makes columns, outputs.py writes them,
parts.py keeps what is done, workers.py has the processes, and job.py is the run."""

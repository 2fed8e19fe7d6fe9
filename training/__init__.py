"""The Trainer subclass and what it needs: recipe, arguments, losses, evaluation."""

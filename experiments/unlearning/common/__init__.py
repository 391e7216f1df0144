"""What unlearning experiments share: models, questions, methods, stages, measures, reports."""

"""Distillation: one file a method, which says what it trains, what an update minimises, and how the result samples.

students/distillation/method.py says what a method is; METHODS of students/spec.py lists them.
`python -m students train METHOD --task TASK` trains one, and `students.load(METHOD, task=TASK)` samples from what was
trained: the weights of a stage are `<folder>/METHOD.safetensors` or `METHOD-STAGE.safetensors`, each with its record.
Importing this module imports no torch.
"""

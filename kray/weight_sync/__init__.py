"""The format in which a policy's weights go from the learner to the engines, and the proof that they arrived."""

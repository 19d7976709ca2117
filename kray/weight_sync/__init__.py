"""How a policy's weights travel from the learner to the engines, and how it is proved that they arrived."""

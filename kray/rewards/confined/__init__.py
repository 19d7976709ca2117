"""What runs inside the code verifier's sandbox: a folder that is run as a program of its own, standard library only.

`__main__` puts up the walls (`walls`, `seccomp`, `landlock`) around its own process and then runs one untrusted program.
It is started by kray.rewards.sandbox and imports nothing of kray.
"""

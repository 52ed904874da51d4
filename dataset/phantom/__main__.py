from common.command import run_command
from dataset.phantom.write import PhantomConfig, run

if __name__ == "__main__":  # the workers import this file too
    run_command(PhantomConfig, run)

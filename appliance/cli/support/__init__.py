"""What every command uses: options, output, signing, times."""

"""The Python interface: what `import tinystory` offers to scripts and notebooks. It knows no terminal."""

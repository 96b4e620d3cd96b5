echo no header

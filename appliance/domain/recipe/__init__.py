"""appliance.domain.recipe.recipe"""

import { defineConfig } from 'eslint/config';
import tseslint from 'typescript-eslint';

export default defineConfig({
  files: ['src/**/*.ts', 'test/**/*.ts'],
  extends: [tseslint.configs.strictTypeChecked],
  languageOptions: { parserOptions: { projectService: true } },
  rules: {
    // Numbers in messages need no String().
    '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true }],
  },
});
